//! Key files: made once, loaded with checks, each fault a typed error that names the file.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::os::unix::fs::PermissionsExt as _;

use super::*;

fn made(dir: &Path) -> Vec<Shown> {
    init(&Init {
        dir: dir.into(),
        members: vec![
            parse_member("A=icserver1,10.60.0.2:3633,[fd00::2]:3633").unwrap(),
            parse_member("B=icserver2,fd00::3").unwrap(),
        ],
        pair: Some("contact-center".into()),
        years: DEFAULT_MEMBER_YEARS,
    })
    .unwrap()
}

fn now() -> OffsetDateTime {
    OffsetDateTime::now_utc()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

// REQ: OPS-092
#[test]
fn init_writes_what_the_interface_says_and_loads() {
    let dir = tempfile::tempdir().unwrap();
    let shown = made(dir.path());
    assert_eq!(mode(&dir.path().join("authority/ca.key")), 0o600);
    assert_eq!(mode(&dir.path().join("A/key.pem")), 0o600);
    assert_eq!(shown.len(), 3);
    assert_eq!(shown[1].member, Some(MemberId::A));
    assert_eq!(shown[1].hosts, ["icserver1", "10.60.0.2", "fd00::2"]);
    assert!(shown[1].days_left >= 5 * 365 - 2, "{}", shown[1].days_left);
    let json = serde_json::to_value(&shown[2]).unwrap();
    assert_eq!(json["member"], "B");
    let a = load(&dir.path().join("A"), MemberId::A, now()).unwrap();
    let b = load(&dir.path().join("B"), MemberId::B, now()).unwrap();
    assert_eq!(a.pair, "contact-center");
    // REQ: OPS-093 (both compare the authority; each certificate is its member's own)
    assert_eq!(a.ca_fingerprint, b.ca_fingerprint);
    assert_ne!(a.fingerprint, b.fingerprint);
    assert!(!format!("{a:?}").contains("PrivateKey"));
}

#[test]
fn init_never_overwrites() {
    let dir = tempfile::tempdir().unwrap();
    made(dir.path());
    let before = fs::read(dir.path().join("A/key.pem")).unwrap();
    let again = Init {
        dir: dir.path().into(),
        members: vec![parse_member("A=x").unwrap(), parse_member("B=y").unwrap()],
        pair: None,
        years: 1,
    };
    assert!(matches!(init(&again), Err(KeysError::Exists(_))));
    fs::remove_dir_all(dir.path().join("authority")).unwrap();
    assert!(matches!(init(&again), Err(KeysError::Exists(path)) if path.ends_with("A")));
    assert!(!dir.path().join("authority").exists());
    assert_eq!(fs::read(dir.path().join("A/key.pem")).unwrap(), before);
}

#[test]
fn the_pair_name_has_a_default_and_a_range() {
    let dir = tempfile::tempdir().unwrap();
    let members = vec![parse_member("A=x").unwrap(), parse_member("B=y").unwrap()];
    let mut options = Init { dir: dir.path().join("one"), members, pair: None, years: 1 };
    init(&options).unwrap();
    let a = load(&options.dir.join("A"), MemberId::A, now()).unwrap();
    assert!(a.pair.starts_with("pair-"), "{}", a.pair);
    options.pair = Some("a/b".into());
    options.dir = dir.path().join("two");
    assert!(matches!(init(&options), Err(KeysError::Argument { option: "--pair", .. })));
    options.pair = None;
    options.years = 0;
    assert!(matches!(init(&options), Err(KeysError::Argument { option: "--years", .. })));
    options.years = 1;
    options.members[1].0 = MemberId::A;
    assert!(matches!(init(&options), Err(KeysError::Argument { option: "--member", .. })));
    assert!(!options.dir.exists());
}

#[test]
fn member_options_are_checked() {
    assert_eq!(parse_member("B=h1, h2").unwrap(), (MemberId::B, vec!["h1".into(), "h2".into()]));
    for bad in ["A", "C=x", "A=", "A=x,,y", "A=a b", "A=[x]", "=x"] {
        assert!(matches!(parse_member(bad), Err(KeysError::Argument { .. })), "{bad}");
    }
}

#[test]
fn loading_names_each_fault() {
    let dir = tempfile::tempdir().unwrap();
    made(dir.path());
    let a = dir.path().join("A");
    let fault = |member| load(&a, member, now()).unwrap_err();
    assert!(matches!(fault(MemberId::B), KeysError::Member { found: MemberId::A, .. }));

    fs::set_permissions(a.join(KEY_FILE), fs::Permissions::from_mode(0o604)).unwrap();
    let error = fault(MemberId::A);
    assert!(
        matches!(error, KeysError::Permissions { mode: 0o604, .. }) && error.to_string().contains("Try: chmod 600")
    );
    fs::set_permissions(a.join(KEY_FILE), fs::Permissions::from_mode(0o640)).unwrap();

    let late = now() + time::Duration::days(6 * 365);
    assert!(matches!(load(&a, MemberId::A, late), Err(KeysError::Expired { .. })));
    let early = now() - time::Duration::days(3);
    assert!(matches!(load(&a, MemberId::A, early), Err(KeysError::NotYetValid { .. })));
    assert_eq!(load(&a, MemberId::A, now()).unwrap().days_left(late), -367 + 2);

    fs::copy(dir.path().join("B/key.pem"), a.join(KEY_FILE)).unwrap();
    assert!(matches!(fault(MemberId::A), KeysError::KeyMismatch { .. }));

    let other = tempfile::tempdir().unwrap();
    made(other.path());
    fs::copy(other.path().join("A/ca.pem"), a.join(CA_FILE)).unwrap();
    fs::copy(other.path().join("A/key.pem"), a.join(KEY_FILE)).unwrap();
    assert!(matches!(fault(MemberId::A), KeysError::Unsigned { .. }));

    fs::write(a.join(CERT_FILE), "nothing").unwrap();
    assert!(matches!(fault(MemberId::A), KeysError::Format { what: "certificate", .. }));
    fs::copy(a.join(CA_FILE), a.join(CERT_FILE)).unwrap();
    assert!(matches!(fault(MemberId::A), KeysError::NoName { .. }));
    fs::remove_file(a.join(KEY_FILE)).unwrap();
    assert!(matches!(fault(MemberId::A), KeysError::Read { .. }));
}

#[test]
fn renewing_keeps_names_key_and_the_old_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let before = made(dir.path());
    let key = fs::read(dir.path().join("A/key.pem")).unwrap();
    let after = renew(dir.path(), 7).unwrap();
    assert_eq!(before[0], after[0]);
    assert_ne!(before[1].fingerprint, after[1].fingerprint);
    assert_eq!(before[1].hosts, after[1].hosts);
    assert!(after[2].days_left > before[2].days_left + 700);
    assert_eq!(fs::read(dir.path().join("A/key.pem")).unwrap(), key);
    assert!(dir.path().join("A/cert.pem.old").exists());
    load(&dir.path().join("A"), MemberId::A, now()).unwrap();
    renew(dir.path(), 7).unwrap();
    fs::remove_dir_all(dir.path().join("authority")).unwrap();
    assert!(matches!(renew(dir.path(), 7), Err(KeysError::Read { .. })));
    assert_eq!(show(&dir.path().join("B"), now()).unwrap().len(), 2);
    assert!(show(&dir.path().join("C"), now()).is_err());
}
