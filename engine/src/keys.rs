//! The pair's keys: the authority, a certificate for each member, and loading them with checks (interface §8).
//!
//! Always: a certificate says pair and member in one SAN URI, `ringpair://PAIR/MEMBER`; who is who is decided by that
//! and by the authority that signed it, never by an address. A pair is what stands under one authority.
//! Private keys are files of mode 0600 and never leave this module but as [`Identity::key`].
//! Never: overwrites a key or certificate that exists (`renew` keeps the replaced one beside it as `*.old`), prints a
//! private key, follows a certificate's own word without the authority's signature (that is the transport's verifier).
#![forbid(unsafe_code)]

mod issue;

use std::{
    fs,
    io::Read as _,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use ringpair_wire::id::MemberId;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use serde::Serialize;
use time::OffsetDateTime;
use x509_parser::extensions::GeneralName;

pub use issue::{DEFAULT_MEMBER_YEARS, Init, MAX_YEARS, init, parse_member, renew};

/// The authority's certificate, beside each member's own.
pub const CA_FILE: &str = "ca.pem";
/// A member's certificate.
pub const CERT_FILE: &str = "cert.pem";
/// A member's private key (mode 0600).
pub const KEY_FILE: &str = "key.pem";
/// The authority's directory below `keys init --dir`.
pub const AUTHORITY_DIR: &str = "authority";
/// The authority's private key, in [`AUTHORITY_DIR`] only (mode 0600).
pub const CA_KEY_FILE: &str = "ca.key";
/// `status` warns from this many days before a certificate expires.
pub const EXPIRY_WARNING_DAYS: i64 = 30;
/// No key file is longer.
const MAX_FILE_BYTES: u64 = 64 << 10;
/// The scheme of the SAN URI.
const SCHEME: &str = "ringpair://";

/// What is wrong with keys, with what to try.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// A file could not be read.
    #[error(
        "cannot read {path}: {error}. Try: ringpair keys init --dir D …, then copy D/{{A,B}} to the hosts and point [security] dir at it"
    )]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// A file could not be written.
    #[error("cannot write {path}: {error}")]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// `init` found keys already.
    #[error(
        "{0} exists already; nothing was written. Try: another --dir, or ringpair keys renew --dir for new certificates"
    )]
    Exists(PathBuf),
    /// Not PEM, or not what the name of the file says.
    #[error("{path} holds no {what}: {detail}")]
    Format {
        /// Which.
        path: PathBuf,
        /// What was expected in it.
        what: &'static str,
        /// What the parser said.
        detail: String,
    },
    /// Others than owner and group may read or write the private key.
    #[error("{path} has mode {mode:04o}: everybody can read or change the private key. Try: chmod 600 {path}")]
    Permissions {
        /// Which.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The certificate is past its last day.
    #[error(
        "{path} expired on {not_after}. Try: ringpair keys renew --dir D where D/authority is kept, then copy the new cert.pem here"
    )]
    Expired {
        /// Which.
        path: PathBuf,
        /// Its last moment, RFC 3339.
        not_after: String,
    },
    /// The certificate is not valid yet: most likely a clock is wrong.
    #[error("{path} is not valid before {not_before}, and the clock says {now}. Try: check this host's clock")]
    NotYetValid {
        /// Which.
        path: PathBuf,
        /// Its first moment, RFC 3339.
        not_before: String,
        /// This host's clock, RFC 3339.
        now: String,
    },
    /// The certificate is another member's.
    #[error(
        "{path} is the certificate of member {found}, but [pair] member is {configured}. Try: [security] dir = the directory {configured} made by keys init"
    )]
    Member {
        /// Which.
        path: PathBuf,
        /// The member it names.
        found: MemberId,
        /// The member that the configuration names.
        configured: MemberId,
    },
    /// The certificate names no pair and member.
    #[error("{path} carries no name of the form ringpair://PAIR/A or /B. Try: certificates made by ringpair keys init")]
    NoName {
        /// Which.
        path: PathBuf,
    },
    /// The authority beside the certificate did not sign it.
    #[error(
        "{path} is not signed by the authority in {ca}. Try: copy {CA_FILE}, {CERT_FILE} and {KEY_FILE} from one and the same keys init"
    )]
    Unsigned {
        /// The certificate.
        path: PathBuf,
        /// The authority.
        ca: PathBuf,
    },
    /// The private key is not the certificate's.
    #[error("{key} is not the private key of {cert}. Try: copy both files from one and the same keys init or renew")]
    KeyMismatch {
        /// The key.
        key: PathBuf,
        /// The certificate.
        cert: PathBuf,
    },
    /// An argument of `keys init` or `renew`.
    #[error("{option} = {value:?}: {reason}. Try: {hint}")]
    Argument {
        /// The option.
        option: &'static str,
        /// What was given.
        value: String,
        /// Why it cannot be.
        reason: &'static str,
        /// What would do.
        hint: &'static str,
    },
    /// The cryptographic library refused.
    #[error("making a certificate failed: {0}")]
    Issue(#[from] rcgen::Error),
}

/// What a certificate says about its owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertName {
    /// The pair.
    pub pair: String,
    /// The member.
    pub member: MemberId,
}

impl CertName {
    /// Reads pair and member from a certificate's SAN URI; `None` where there is none or more than one.
    /// Says nothing about who signed it.
    #[must_use]
    pub fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
        let names = parsed.subject_alternative_name().ok()??;
        let mut found = names.value.general_names.iter().filter_map(|name| match name {
            GeneralName::URI(uri) => uri.strip_prefix(SCHEME),
            _ => None,
        });
        let name = found.next()?;
        if found.next().is_some() {
            return None;
        }
        let (pair, member) = name.rsplit_once('/')?;
        let member = match member {
            "A" => MemberId::A,
            "B" => MemberId::B,
            _ => return None,
        };
        (!pair.is_empty()).then(|| Self { pair: pair.into(), member })
    }

    /// The SAN URI.
    #[must_use]
    pub fn uri(&self) -> String {
        format!("{SCHEME}{}/{}", self.pair, self.member)
    }
}

/// The SHA-256 of a certificate's DER, as `openssl x509 -fingerprint -sha256` prints it.
#[must_use]
pub fn fingerprint(certificate: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, certificate);
    let hex: Vec<String> = digest.as_ref().iter().map(|byte| format!("{byte:02X}")).collect();
    hex.join(":")
}

/// A member's own keys, loaded and checked.
pub struct Identity {
    /// The pair that the certificate names.
    pub pair: String,
    /// The member that the certificate names: the configured one.
    pub member: MemberId,
    /// The pair's authority.
    pub ca: CertificateDer<'static>,
    /// This member's certificate.
    pub certificate: CertificateDer<'static>,
    /// Its private key.
    pub key: PrivateKeyDer<'static>,
    /// Fingerprint of the certificate.
    pub fingerprint: String,
    /// Fingerprint of the authority: both members compare it (OPS-093).
    pub ca_fingerprint: String,
    /// The last moment of the certificate.
    pub not_after: OffsetDateTime,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity")
            .field("pair", &self.pair)
            .field("member", &self.member)
            .field("fingerprint", &self.fingerprint)
            .finish_non_exhaustive()
    }
}

impl Identity {
    /// Days until the certificate expires; negative afterwards.
    #[must_use]
    pub fn days_left(&self, now: OffsetDateTime) -> i64 {
        (self.not_after - now).whole_days()
    }
}

/// Loads a member's keys from `[security] dir` and checks them: permissions of the private key, expiry, whose they
/// are, that authority, certificate and key belong together.
///
/// # Errors
/// [`KeysError`], naming the file and what to try.
pub fn load(dir: &Path, member: MemberId, now: OffsetDateTime) -> Result<Identity, KeysError> {
    let (ca_path, cert_path, key_path) = (dir.join(CA_FILE), dir.join(CERT_FILE), dir.join(KEY_FILE));
    let ca = read_certificate(&ca_path)?;
    let certificate = read_certificate(&cert_path)?;
    let mode = fs::metadata(&key_path).map_err(|error| KeysError::Read { path: key_path.clone(), error })?.mode();
    if mode & 0o007 != 0 {
        return Err(KeysError::Permissions { path: key_path, mode: mode & 0o7777 });
    }
    let key = PrivateKeyDer::from_pem_slice(&read_bounded(&key_path)?).map_err(|error| KeysError::Format {
        path: key_path.clone(),
        what: "private key",
        detail: error.to_string(),
    })?;
    let name = CertName::of(&certificate).ok_or_else(|| KeysError::NoName { path: cert_path.clone() })?;
    if name.member != member {
        return Err(KeysError::Member { path: cert_path, found: name.member, configured: member });
    }
    let not_after = check_validity(&certificate, &cert_path, now)?;
    check_validity(&ca, &ca_path, now)?;
    if !is_signed_by(&certificate, &ca) {
        return Err(KeysError::Unsigned { path: cert_path, ca: ca_path });
    }
    let signer = rustls::crypto::ring::sign::any_supported_type(&key).map_err(|error| KeysError::Format {
        path: key_path.clone(),
        what: "usable private key",
        detail: error.to_string(),
    })?;
    if rustls::sign::CertifiedKey::new(vec![certificate.clone()], signer).keys_match().is_err() {
        return Err(KeysError::KeyMismatch { key: key_path, cert: cert_path });
    }
    Ok(Identity {
        pair: name.pair,
        member,
        fingerprint: fingerprint(&certificate),
        ca_fingerprint: fingerprint(&ca),
        ca,
        certificate,
        key,
        not_after,
    })
}

/// One certificate, as `keys show` prints it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Shown {
    /// The file.
    pub path: PathBuf,
    /// `authority` or `member`.
    pub kind: &'static str,
    /// The pair; of an authority, its common name.
    pub pair: String,
    /// The member; none for the authority.
    pub member: Option<MemberId>,
    /// The hosts that the certificate names.
    pub hosts: Vec<String>,
    /// SHA-256 of the certificate.
    pub fingerprint: String,
    /// First moment, RFC 3339.
    pub not_before: String,
    /// Last moment, RFC 3339.
    pub not_after: String,
    /// Days until then; negative afterwards.
    pub days_left: i64,
}

/// Shows the certificates in `dir`: what `keys init` made (authority and members), or one member's directory.
///
/// # Errors
/// [`KeysError`] for a file that cannot be read, and where there is no certificate at all.
pub fn show(dir: &Path, now: OffsetDateTime) -> Result<Vec<Shown>, KeysError> {
    let candidates = [
        (dir.join(AUTHORITY_DIR).join(CA_FILE), "authority"),
        (dir.join("A").join(CERT_FILE), "member"),
        (dir.join("B").join(CERT_FILE), "member"),
        (dir.join(CA_FILE), "authority"),
        (dir.join(CERT_FILE), "member"),
    ];
    let mut shown = Vec::new();
    for (path, kind) in candidates {
        if path.exists() {
            shown.push(describe(&path, kind, now)?);
        }
    }
    if shown.is_empty() {
        let error = std::io::Error::new(std::io::ErrorKind::NotFound, "no certificate here");
        return Err(KeysError::Read { path: dir.into(), error });
    }
    Ok(shown)
}

/// What [`show`] says of one file.
fn describe(path: &Path, kind: &'static str, now: OffsetDateTime) -> Result<Shown, KeysError> {
    let der = read_certificate(path)?;
    let (_, parsed) = x509_parser::parse_x509_certificate(&der).map_err(|error| bad_certificate(path, &error))?;
    let name = CertName::of(&der);
    let common = parsed.subject().iter_common_name().next().and_then(|name| name.as_str().ok()).unwrap_or_default();
    let not_after = parsed.validity().not_after.to_datetime();
    Ok(Shown {
        path: path.into(),
        kind,
        pair: name.as_ref().map_or_else(|| common.to_owned(), |name| name.pair.clone()),
        member: name.map(|name| name.member),
        hosts: hosts_of(&der),
        fingerprint: fingerprint(&der),
        not_before: rfc3339(parsed.validity().not_before.to_datetime()),
        not_after: rfc3339(not_after),
        days_left: (not_after - now).whole_days(),
    })
}

/// The DNS names and addresses that a certificate names.
fn hosts_of(certificate: &CertificateDer<'_>) -> Vec<String> {
    let Ok((_, parsed)) = x509_parser::parse_x509_certificate(certificate) else { return Vec::new() };
    let Ok(Some(names)) = parsed.subject_alternative_name() else { return Vec::new() };
    let address = |octets: &[u8]| {
        <[u8; 4]>::try_from(octets)
            .map(std::net::IpAddr::from)
            .or_else(|_| <[u8; 16]>::try_from(octets).map(std::net::IpAddr::from))
            .ok()
            .map(|address| address.to_string())
    };
    let hosts = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(octets) => address(octets),
        _ => None,
    });
    hosts.collect()
}

/// Reads a file of at most [`MAX_FILE_BYTES`].
fn read_bounded(path: &Path) -> Result<Vec<u8>, KeysError> {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        fs::File::open(path)?.take(MAX_FILE_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    read().map_err(|error| KeysError::Read { path: path.into(), error })
}

/// The first certificate of a PEM file.
fn read_certificate(path: &Path) -> Result<CertificateDer<'static>, KeysError> {
    CertificateDer::from_pem_slice(&read_bounded(path)?).map_err(|error| bad_certificate(path, &error))
}

/// A file that holds no certificate.
fn bad_certificate(path: &Path, error: &dyn std::fmt::Display) -> KeysError {
    KeysError::Format { path: path.into(), what: "certificate", detail: error.to_string() }
}

/// Checks that `now` lies within the validity, and returns its end.
fn check_validity(
    certificate: &CertificateDer<'_>,
    path: &Path,
    now: OffsetDateTime,
) -> Result<OffsetDateTime, KeysError> {
    let (_, parsed) =
        x509_parser::parse_x509_certificate(certificate).map_err(|error| bad_certificate(path, &error))?;
    let (from, until) = (parsed.validity().not_before.to_datetime(), parsed.validity().not_after.to_datetime());
    if now < from {
        return Err(KeysError::NotYetValid { path: path.into(), not_before: rfc3339(from), now: rfc3339(now) });
    }
    if now > until {
        return Err(KeysError::Expired { path: path.into(), not_after: rfc3339(until) });
    }
    Ok(until)
}

/// Whether `ca` signed `certificate`, validity aside.
fn is_signed_by(certificate: &CertificateDer<'_>, ca: &CertificateDer<'_>) -> bool {
    let mut roots = rustls::RootCertStore::empty();
    if roots.add(ca.clone().into_owned()).is_err() {
        return false;
    }
    let Ok(parsed) = rustls::server::ParsedCertificate::try_from(certificate) else { return false };
    let Ok((_, x509)) = x509_parser::parse_x509_certificate(certificate) else { return false };
    let inside = u64::try_from(x509.validity().not_after.timestamp() - 1).unwrap_or(0);
    let algorithms = rustls::crypto::ring::default_provider().signature_verification_algorithms;
    rustls::client::verify_server_cert_signed_by_trust_anchor(
        &parsed,
        &roots,
        &[],
        rustls_pki_types::UnixTime::since_unix_epoch(std::time::Duration::from_secs(inside)),
        algorithms.all,
    )
    .is_ok()
}

/// `2026-11-20T13:00:00Z`.
fn rfc3339(time: OffsetDateTime) -> String {
    time.format(&time::format_description::well_known::Rfc3339).unwrap_or_else(|_| time.to_string())
}

#[cfg(test)]
mod tests;
