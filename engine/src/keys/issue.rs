//! Making and renewing the authority and the members' certificates.
//!
//! Always: private keys are created with mode 0600 before a byte is in them; everything is checked before the first
//! file is written. Never: replaces a file without keeping the old one beside it.
#![forbid(unsafe_code)]

use std::{
    fs,
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, SanType,
};
use ringpair_wire::id::MemberId;
use time::{Duration, OffsetDateTime};

use super::{
    AUTHORITY_DIR, CA_FILE, CA_KEY_FILE, CERT_FILE, CertName, KEY_FILE, KeysError, Shown, hosts_of, read_bounded,
    read_certificate, show,
};

/// How long a member's certificate lasts unless told otherwise, in years.
pub const DEFAULT_MEMBER_YEARS: u32 = 5;
/// The longest validity that can be asked for, in years: as long as the authority's.
pub const MAX_YEARS: u32 = 30;
/// Certificates are valid from this long before they are made, so that clocks need not agree to the second.
const BACKDATED: Duration = Duration::days(1);

/// What `keys init` is asked for.
#[derive(Clone, Debug)]
pub struct Init {
    /// Where (`--dir`).
    pub dir: PathBuf,
    /// Each member's hosts: names or addresses, with or without a port (`--member A=HOST[,HOST…]`).
    pub members: Vec<(MemberId, Vec<String>)>,
    /// The pair's name in the certificates; by default derived from the authority's key. It is only shown: a pair is
    /// what stands under one authority.
    pub pair: Option<String>,
    /// Validity of the members' certificates, in years, 1 to [`MAX_YEARS`].
    pub years: u32,
}

/// Reads `A=HOST[,HOST…]`.
///
/// # Errors
/// [`KeysError::Argument`] where it is not that.
pub fn parse_member(text: &str) -> Result<(MemberId, Vec<String>), KeysError> {
    let wrong = |reason| KeysError::Argument {
        option: "--member",
        value: text.into(),
        reason,
        hint: "--member A=icserver1,10.60.0.2 --member B=icserver2,10.60.0.3",
    };
    let (member, hosts) = text.split_once('=').ok_or_else(|| wrong("has no '='"))?;
    let member = match member {
        "A" => MemberId::A,
        "B" => MemberId::B,
        _ => return Err(wrong("names neither A nor B")),
    };
    let hosts: Vec<String> = hosts.split(',').map(|host| host.trim().to_owned()).collect();
    if hosts.iter().any(|host| host_name(host).is_none()) {
        return Err(wrong("has a host that is neither a name nor an address"));
    }
    Ok((member, hosts))
}

/// The name or address of `host`, without a port.
fn host_name(host: &str) -> Option<SanType> {
    if let Ok(address) = host.parse() {
        return Some(SanType::IpAddress(address));
    }
    if let Ok(address) = host.parse::<std::net::SocketAddr>() {
        return Some(SanType::IpAddress(address.ip()));
    }
    if let Some(address) = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        return address.parse().ok().map(SanType::IpAddress);
    }
    let name = host.split_once(':').map_or(host, |(name, _)| name);
    let good =
        !name.is_empty() && name.len() <= 253 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    if good { name.to_owned().try_into().ok().map(SanType::DnsName) } else { None }
}

/// Makes the authority and both members' certificates.
///
/// # Errors
/// [`KeysError::Exists`] where anything of it is there already (nothing is written then); arguments out of range;
/// files that cannot be written.
pub fn init(options: &Init) -> Result<Vec<Shown>, KeysError> {
    check_years(options.years)?;
    check_members(&options.members)?;
    for name in [AUTHORITY_DIR, "A", "B"] {
        let path = options.dir.join(name);
        if fs::symlink_metadata(&path).is_ok() {
            return Err(KeysError::Exists(path));
        }
    }
    let now = OffsetDateTime::now_utc();
    let ca_key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let pair = match &options.pair {
        Some(pair) => checked_pair(pair)?,
        None => derived_pair(&ca_key),
    };
    let ca_params = authority_params(&pair, now);
    let ca = ca_params.self_signed(&ca_key)?;
    let issuer = Issuer::new(ca_params, &ca_key);
    let mut made = Vec::new();
    for (member, hosts) in &options.members {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let name = CertName { pair: pair.clone(), member: *member };
        let certificate = member_params(&name, hosts, options.years, now)?.signed_by(&key, &issuer)?;
        made.push((*member, certificate.pem(), key.serialize_pem()));
    }
    let authority = options.dir.join(AUTHORITY_DIR);
    make_dir(&authority)?;
    write_new(&authority.join(CA_KEY_FILE), ca_key.serialize_pem().as_bytes(), 0o600)?;
    write_new(&authority.join(CA_FILE), ca.pem().as_bytes(), 0o644)?;
    for (member, certificate, key) in made {
        let dir = options.dir.join(member.to_string());
        make_dir(&dir)?;
        write_new(&dir.join(KEY_FILE), key.as_bytes(), 0o600)?;
        write_new(&dir.join(CERT_FILE), certificate.as_bytes(), 0o644)?;
        write_new(&dir.join(CA_FILE), ca.pem().as_bytes(), 0o644)?;
    }
    show(&options.dir, now)
}

/// Signs new certificates for the members found below `dir` (which `keys init` made and where the authority still
/// is), with the names they had and the private keys they have; the replaced certificate stays as `cert.pem.old`.
/// A running member takes the new one at its next connection after SIGHUP.
///
/// # Errors
/// [`KeysError`] where authority or certificates cannot be read, or the new ones not be written.
pub fn renew(dir: &Path, years: u32) -> Result<Vec<Shown>, KeysError> {
    check_years(years)?;
    let authority = dir.join(AUTHORITY_DIR);
    let ca_key = read_key(&authority.join(CA_KEY_FILE))?;
    let issuer = Issuer::from_ca_cert_der(&read_certificate(&authority.join(CA_FILE))?, &ca_key)?;
    let now = OffsetDateTime::now_utc();
    let mut found = false;
    for member in [MemberId::A, MemberId::B] {
        let home = dir.join(member.to_string());
        let path = home.join(CERT_FILE);
        if !path.exists() {
            continue;
        }
        found = true;
        let old = read_certificate(&path)?;
        let name = CertName::of(&old).ok_or_else(|| KeysError::NoName { path: path.clone() })?;
        let key = read_key(&home.join(KEY_FILE))?;
        let certificate = member_params(&name, &hosts_of(&old), years, now)?.signed_by(&key, &issuer)?;
        replace(&path, certificate.pem().as_bytes())?;
    }
    if !found {
        let error = std::io::Error::new(std::io::ErrorKind::NotFound, "no member's certificate below it");
        return Err(KeysError::Read { path: dir.into(), error });
    }
    show(dir, now)
}

/// Both members, each once, each with a host.
fn check_members(members: &[(MemberId, Vec<String>)]) -> Result<(), KeysError> {
    let count = |member| members.iter().filter(|(id, hosts)| *id == member && !hosts.is_empty()).count();
    if members.len() == 2 && count(MemberId::A) == 1 && count(MemberId::B) == 1 {
        return Ok(());
    }
    Err(KeysError::Argument {
        option: "--member",
        value: members.iter().map(|(id, hosts)| format!("{id}={}", hosts.join(","))).collect::<Vec<_>>().join(" "),
        reason: "both members are needed, each once, with at least one host",
        hint: "--member A=icserver1,10.60.0.2 --member B=icserver2,10.60.0.3",
    })
}

/// 1 to [`MAX_YEARS`].
fn check_years(years: u32) -> Result<(), KeysError> {
    if (1..=MAX_YEARS).contains(&years) {
        return Ok(());
    }
    Err(KeysError::Argument {
        option: "--years",
        value: years.to_string(),
        reason: "is not 1 to 30",
        hint: "--years 5",
    })
}

/// A pair's name that can stand in a URI.
fn checked_pair(pair: &str) -> Result<String, KeysError> {
    let good = (1..=64).contains(&pair.len()) && pair.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    if good {
        return Ok(pair.into());
    }
    Err(KeysError::Argument {
        option: "--pair",
        value: pair.into(),
        reason: "is not 1 to 64 letters, digits, '-', '_' or '.'",
        hint: "--pair contact-center, or leave it out",
    })
}

/// A name for a pair that was given none: from the authority's public key.
fn derived_pair(ca_key: &KeyPair) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, ca_key.public_key_raw());
    let hex: String = digest.as_ref().iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    format!("pair-{hex}")
}

/// The authority: signs members of this pair and nothing else.
fn authority_params(pair: &str, now: OffsetDateTime) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "ringpair");
    params.distinguished_name.push(DnType::CommonName, format!("{pair} authority"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = now - BACKDATED;
    params.not_after = now + Duration::days(365 * i64::from(MAX_YEARS) + 8);
    params
}

/// A member's certificate: server and client, for it dials and is dialed.
fn member_params(
    name: &CertName,
    hosts: &[String],
    years: u32,
    now: OffsetDateTime,
) -> Result<CertificateParams, KeysError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "ringpair");
    params.distinguished_name.push(DnType::CommonName, format!("{} member {}", name.pair, name.member));
    params.subject_alt_names.push(SanType::URI(name.uri().try_into()?));
    for host in hosts {
        let host = host_name(host).ok_or_else(|| KeysError::Argument {
            option: "--member",
            value: host.clone(),
            reason: "is neither a name nor an address",
            hint: "--member A=icserver1,10.60.0.2",
        })?;
        params.subject_alt_names.push(host);
    }
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    params.not_before = now - BACKDATED;
    params.not_after = now + Duration::days(365 * i64::from(years));
    Ok(params)
}

/// Reads a private key that `keys init` wrote.
fn read_key(path: &Path) -> Result<KeyPair, KeysError> {
    let bytes = read_bounded(path)?;
    let wrong = |detail: String| KeysError::Format { path: path.into(), what: "private key", detail };
    let text = std::str::from_utf8(&bytes).map_err(|error| wrong(error.to_string()))?;
    KeyPair::from_pem(text).map_err(|error| wrong(error.to_string()))
}

/// Makes a directory (and its parents) that only its owner may enter.
fn make_dir(path: &Path) -> Result<(), KeysError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|error| KeysError::Write { path: path.into(), error })
}

/// Writes a file that must not exist, and syncs it.
fn write_new(path: &Path, bytes: &[u8], mode: u32) -> Result<(), KeysError> {
    let write = || -> std::io::Result<()> {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(|error| KeysError::Write { path: path.into(), error })
}

/// Replaces a certificate in one step; the old one stays as `*.old`.
fn replace(path: &Path, bytes: &[u8]) -> Result<(), KeysError> {
    let beside = |suffix: &str| {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        PathBuf::from(name)
    };
    let (new, old) = (beside(".new"), beside(".old"));
    let failed = |error| KeysError::Write { path: path.into(), error };
    match fs::remove_file(&new) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    write_new(&new, bytes, 0o644)?;
    fs::copy(path, &old).map_err(failed)?;
    fs::rename(&new, path).map_err(failed)
}
