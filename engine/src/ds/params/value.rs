//! From a parameter's text to its value: leniently for what is found in the tree (PAR-006), strictly for what is set.
//!
//! Always: both read the same grammar; leniently, a value out of range is clamped and one that cannot be read gives way
//! to the default, each with a warning. Never: a failure to start because of an optional parameter.

use std::net::IpAddr;

use ringpair_wire::{ds::DsPath, dscp::Dscp};

use crate::ds::params::registry::{Kind, Spec};

/// A parameter's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ParamValue {
    /// A text, name, host or directory.
    Text(String),
    /// A switch.
    Switch(bool),
    /// A number, or seconds.
    Number(i64),
    /// A DSCP, 0 to 63.
    Dscp(u8),
    /// A list of texts, blank ends trimmed, empty elements left out (PAR-009).
    List(Vec<String>),
    /// A list of directories.
    Directories(Vec<MirrorDir>),
}

/// One entry of a directory list.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MirrorDir {
    /// The directory, without the `+`.
    pub path: String,
    /// Whether `+` stood before it: with all subdirectories (REP-027).
    pub recursive: bool,
}

/// Why a value is refused: what is expected and what to try.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name} = {value:?}: {expected}. Try: {hint}")]
pub struct ValueError {
    /// The parameter's canonical name.
    pub name: &'static str,
    /// The value given.
    pub value: String,
    /// What is expected.
    pub expected: String,
    /// What to try.
    pub hint: String,
    /// The nearest permitted value, where there is one (PAR-006).
    pub nearest: Option<ParamValue>,
}

/// Reads a switch: `Yes`, `On`, `True` and integers other than 0 enable; `No`, `Off`, `False`, `0` and nothing
/// disable, all regardless of case (PAR-002). `None`: neither.
#[must_use]
pub fn parse_switch(text: &str) -> Option<bool> {
    let text = text.trim();
    match text.to_ascii_lowercase().as_str() {
        "yes" | "on" | "true" => Some(true),
        "no" | "off" | "false" | "" => Some(false),
        _ => {
            let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
            let number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
            number.then(|| digits.bytes().any(|byte| byte != b'0'))
        }
    }
}

/// Reads a `;` list: blank ends trimmed, empty elements left out (PAR-009).
#[must_use]
pub fn parse_list(text: &str) -> Vec<String> {
    text.split(';').map(str::trim).filter(|element| !element.is_empty()).map(str::to_owned).collect()
}

/// Reads a directory list, `+` before an entry meaning its whole subtree (PAR-063, REP-027).
#[must_use]
pub fn parse_directories(text: &str) -> Vec<MirrorDir> {
    parse_list(text)
        .into_iter()
        .map(|entry| match entry.strip_prefix('+') {
            Some(path) => MirrorDir { path: path.trim_start().to_owned(), recursive: true },
            None => MirrorDir { path: entry, recursive: false },
        })
        .collect()
}

/// Reads extensions: a leading dot is tolerated, case does not count (PAR-065); they come out in lower case.
#[must_use]
pub fn parse_extensions(text: &str) -> Vec<String> {
    let bare = |extension: String| extension.strip_prefix('.').unwrap_or(&extension).to_lowercase();
    parse_list(text).into_iter().map(bare).collect()
}

/// Reads a DS path as the filters write it: also with a backslash before `$` (PAR-080).
///
/// # Errors
/// [`ringpair_wire::ds::PathError`].
pub fn parse_filter_path(text: &str) -> Result<DsPath, ringpair_wire::ds::PathError> {
    DsPath::parse(text.strip_prefix('\\').filter(|rest| rest.starts_with('$')).unwrap_or(text))
}

/// Reads one `Class(attribute, …)` term (PAR-081); `None`: not of that form.
#[must_use]
pub fn parse_class_term(text: &str) -> Option<(String, Vec<String>)> {
    let (class, rest) = text.split_once('(')?;
    let attributes = rest.trim_end().strip_suffix(')')?;
    let class = class.trim();
    if class.is_empty() || attributes.contains(['(', ')']) {
        return None;
    }
    let attributes: Vec<String> = attributes.split(',').map(|name| name.trim().to_owned()).collect();
    attributes.iter().all(|name| !name.is_empty()).then(|| (class.to_owned(), attributes))
}

/// Reads a value strictly.
///
/// # Errors
/// [`ValueError`] with the nearest permitted value where there is one.
pub fn parse(spec: &Spec, text: &str) -> Result<ParamValue, ValueError> {
    let refuse = |expected: String, hint: &str, nearest| ValueError {
        name: spec.name,
        value: text.to_owned(),
        expected,
        hint: hint.to_owned(),
        nearest,
    };
    match spec.kind {
        Kind::Text => Ok(ParamValue::Text(text.to_owned())),
        Kind::Name => match text.trim() {
            name if name.is_empty() || name.contains(['.', ':', '/', ' ']) => {
                Err(refuse("expected a bare computer name".into(), "the name without domain, such as icserver1", None))
            }
            name => Ok(ParamValue::Text(name.to_owned())),
        },
        Kind::Address => match text.trim().parse::<IpAddr>() {
            Ok(address) => Ok(ParamValue::Text(address.to_string())),
            Err(_) => Err(refuse("expected an IP address".into(), "an address such as 10.60.0.2", None)),
        },
        Kind::Switch => parse_switch(text)
            .map(ParamValue::Switch)
            .ok_or_else(|| refuse("expected a switch".into(), "Yes or No", None)),
        Kind::Count { min, max } => parse_number(spec, text, (min, max), "number"),
        Kind::Seconds { min, max } => parse_number(spec, text, (min, max), "number of seconds"),
        Kind::Dscp => match text.trim().parse::<Dscp>() {
            Ok(dscp) => Ok(ParamValue::Dscp(dscp.number())),
            Err(_) => Err(refuse("expected a DSCP class name or 0 to 63".into(), "AF41", None)),
        },
        Kind::Directory => match text.trim() {
            path if is_absolute(path) => Ok(ParamValue::Text(path.to_owned())),
            path => Err(refuse(format!("{path:?} is not an absolute path"), "a path such as /srv/app/handlers", None)),
        },
        Kind::Directories => {
            let directories = parse_directories(text);
            match directories.iter().find(|dir| !is_absolute(&dir.path)) {
                None => Ok(ParamValue::Directories(directories)),
                Some(bad) => {
                    let nearest = directories.iter().filter(|dir| is_absolute(&dir.path)).cloned().collect();
                    let expected = format!("{:?} is not an absolute path without '..'", bad.path);
                    Err(refuse(expected, "+/srv/app/resources;/srv/app/tools", Some(ParamValue::Directories(nearest))))
                }
            }
        }
        Kind::Extensions => {
            let extensions = parse_extensions(text);
            match extensions.iter().find(|extension| extension.is_empty() || extension.contains('/')) {
                None => Ok(ParamValue::List(extensions)),
                Some(bad) => Err(refuse(format!("{bad:?} is not a file extension"), "tmp;swp", None)),
            }
        }
        Kind::Hosts => Ok(ParamValue::List(parse_list(text))),
        Kind::DsPaths | Kind::ClassAttributes | Kind::DsExclusions => {
            let terms = parse_list(text);
            let good = |term: &String| match spec.kind {
                Kind::DsPaths => parse_filter_path(term).is_ok(),
                Kind::ClassAttributes => parse_class_term(term).is_some(),
                _ if term.contains('(') => parse_class_term(term).is_some(),
                _ => parse_filter_path(term).is_ok(),
            };
            match terms.iter().find(|term| !good(term)) {
                None => Ok(ParamValue::List(terms)),
                Some(bad) => {
                    let (expected, hint) = match spec.kind {
                        Kind::ClassAttributes => ("a Class(attribute, …) term", "User(Workgroups, Extension)"),
                        _ => ("a DS path", "${CONFIG}\\Users;${CONFIG}\\Passwords"),
                    };
                    let nearest = ParamValue::List(terms.iter().filter(|term| good(term)).cloned().collect());
                    Err(refuse(format!("{bad:?} is not {expected}"), hint, Some(nearest)))
                }
            }
        }
    }
}

fn parse_number(spec: &Spec, text: &str, (min, max): (i64, i64), what: &str) -> Result<ParamValue, ValueError> {
    let range = if max == i64::from(u32::MAX) { format!("at least {min}") } else { format!("{min} to {max}") };
    let refuse = |nearest: Option<i64>| ValueError {
        name: spec.name,
        value: text.to_owned(),
        expected: format!("expected a whole {what}, {range}"),
        hint: nearest.map_or_else(|| spec.default.unwrap_or("1").to_owned(), |nearest| nearest.to_string()),
        nearest: nearest.map(ParamValue::Number),
    };
    // What does not fit 64 bits is out of range like anything else that is too large.
    let number: i128 = text.trim().parse().map_err(|_| refuse(None))?;
    let nearest = number.clamp(min.into(), max.into());
    let fits = i64::try_from(nearest).unwrap_or(max);
    if nearest == number { Ok(ParamValue::Number(fits)) } else { Err(refuse(Some(fits))) }
}

fn is_absolute(path: &str) -> bool {
    path.starts_with('/') && !path.contains('\0') && path.split('/').all(|component| component != "..")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ds::params::registry::{ALL, find};

    fn read(name: &str, text: &str) -> Result<ParamValue, ValueError> {
        parse(find(name).unwrap(), text)
    }

    // REQ: PAR-002
    #[test]
    fn switches_have_one_grammar() {
        for on in ["Yes", "yes", "ON", "True", "1", "-1", "42", " yes ", "99999999999999999999999"] {
            assert_eq!(parse_switch(on), Some(true), "{on:?}");
        }
        for off in ["No", "OFF", "false", "0", "00", "", "  "] {
            assert_eq!(parse_switch(off), Some(false), "{off:?}");
        }
        for neither in ["y", "maybe", "1.5", "-", "0x1", "yes no"] {
            assert_eq!(parse_switch(neither), None, "{neither:?}");
        }
    }

    // REQ: PAR-009, PAR-063, PAR-065, REP-027
    #[test]
    fn lists_are_trimmed_and_plus_means_the_subtree() {
        assert_eq!(parse_list(" txt; gif ;; myext;"), ["txt", "gif", "myext"]);
        let dir = |path: &str, recursive| MirrorDir { path: path.into(), recursive };
        assert_eq!(
            parse_directories("/a/Data1; +/a/Data2 ;+ /c"),
            [dir("/a/Data1", false), dir("/a/Data2", true), dir("/c", true)]
        );
        assert_eq!(parse_extensions(".TXT; gif"), ["txt", "gif"]);
    }

    // REQ: PAR-006, PAR-031, PAR-044, PAR-045
    #[test]
    fn numbers_out_of_range_name_the_nearest() {
        let nearest = |name, text| read(name, text).unwrap_err().nearest;
        assert_eq!(read("Switchover TS Timeout", " 60 "), Ok(ParamValue::Number(60)));
        assert_eq!(nearest("Switchover TS Timeout", "4"), Some(ParamValue::Number(5)));
        assert_eq!(nearest("Switchover TS Timeout", "99999999999999999999"), Some(ParamValue::Number(60)));
        assert_eq!(nearest("Switchover Unreachable Primary Ping Count", "-2"), Some(ParamValue::Number(-1)));
        assert_eq!(nearest("Switchover Unreachable Primary Ping Delay", "0"), Some(ParamValue::Number(1)));
        assert_eq!(nearest("Switchover TS Timeout", "ten"), None);
        let error = read("Switchover TS Timeout", "61").unwrap_err().to_string();
        assert_eq!(error, "Switchover TS Timeout = \"61\": expected a whole number of seconds, 5 to 60. Try: 60");
    }

    // REQ: PAR-015, PAR-021, PAR-054, PAR-066, PAR-080, PAR-081, PAR-084
    #[test]
    fn each_kind_refuses_what_it_is_not() {
        for (name, good, bad) in [
            ("SwitchoverServer A", "icserver1", "icserver1.example.org"),
            ("Server A Address", "fd00::1", "icserver1"),
            ("Switchover QoS DSCP", "af31", "64"),
            ("Handler Path", "/srv/handlers", "srv/handlers"),
            ("CustomMirrorDir", "+/srv/a;/srv/b", "/srv/a;/srv/../etc"),
            ("MirrorExceptions", "tmp;.swp", "a/b"),
            ("Custom Upgrade Synchronization Directories", "\\${CONFIG}\\Users;${SERVER}\\Workstations", "Users"),
            (
                "Custom Upgrade Attribute Exceptions",
                "User(Workgroups, Extension);Workgroup( View User Queue List )",
                "User",
            ),
            ("Switchover Upgrade Higher DS Exclusions", "/CONFIG/Lines;User(Extension)", "User(Extension"),
            ("Mail Interaction Recovery Enabled", "Yes", "perhaps"),
        ] {
            assert!(read(name, good).is_ok(), "{name}: {good}");
            assert!(read(name, bad).unwrap_err().to_string().contains("Try: "), "{name}: {bad}");
        }
        // REQ: REP-130
        let terms = parse_list("User(Workgroups, Extension);Workgroup(Members, View User Queue List)");
        let counts: Vec<_> = terms.iter().map(|term| parse_class_term(term).map(|(_, of)| of.len())).collect();
        assert_eq!(counts, [Some(2), Some(2)]);
        let (class, attributes) = parse_class_term("Workgroup(Members, View User Queue List)").unwrap();
        assert_eq!(
            (class.as_str(), &attributes[..]),
            ("Workgroup", &["Members".to_owned(), "View User Queue List".to_owned()][..])
        );
    }

    // REQ: PAR-005
    #[test]
    fn every_default_is_permitted() {
        for spec in ALL {
            assert!(spec.default.is_none_or(|default| parse(spec, default).is_ok()), "{}", spec.name);
        }
        assert!(ALL.is_sorted_by_key(|spec| spec.id), "found by binary search");
    }
}
