//! The query part and the path part of a request, checked.
//!
//! Always holds: an unknown or repeated key, a bad value, an encoding that is not UTF-8 where text is wanted, is an error
//! that names it. `+` stands for itself (RFC 3986), a space is `%20`.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use percent_encoding::percent_decode_str;
use ringpair_wire::{
    ds::DsPath,
    id::{AckLevel, Epoch, Seq, Version},
};

use super::backend::Failure;

/// The longest time-out that a caller may ask for.
const MAX_TIMEOUT_S: f64 = 86_400.0;

/// The ack levels, lowest first.
pub const ACK_LEVELS: [AckLevel; 5] =
    [AckLevel::Async, AckLevel::Local, AckLevel::Received, AckLevel::Durable, AckLevel::Applied];

/// Reads an ack level by name.
///
/// # Errors
/// Names the value and the levels.
pub fn ack_level(text: &str) -> Result<AckLevel, String> {
    ACK_LEVELS
        .into_iter()
        .find(|level| level.name() == text)
        .ok_or_else(|| format!("ack level {text:?} is none of async, local, received, durable, applied. Try: durable"))
}

/// Reads a cursor `EPOCH:SEQ`.
///
/// # Errors
/// Names the value and the form.
pub fn cursor(text: &str) -> Result<Version, String> {
    let numbers = text.split_once(':').and_then(|(epoch, seq)| Some((epoch.parse().ok()?, seq.parse().ok()?)));
    let (epoch, seq) = numbers.ok_or_else(|| format!("cursor {text:?} is not EPOCH:SEQ. Try: 65537:1042"))?;
    Ok(Version { epoch: Epoch(epoch), seq: Seq(seq) })
}

/// The keys of a query, each once.
#[derive(Debug)]
pub(super) struct Query(BTreeMap<String, Vec<u8>>);

impl Query {
    /// Reads `text`; only `known` keys are permitted.
    pub(super) fn parse(text: Option<&str>, known: &[&str]) -> Result<Self, Failure> {
        let mut keys = BTreeMap::new();
        for pair in text.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            if !known.contains(&key) {
                let known = if known.is_empty() { "none".into() } else { known.join(", ") };
                return Err(Failure::Malformed(format!("query key {key:?} is not known here. Try: {known}")));
            }
            if keys.insert(key.to_owned(), percent_decode_str(value).collect()).is_some() {
                return Err(Failure::Malformed(format!("query key {key:?} stands twice. Try: it once")));
            }
        }
        Ok(Self(keys))
    }

    /// The bytes of `key`.
    pub(super) fn bytes(&self, key: &str) -> Option<&[u8]> {
        self.0.get(key).map(Vec::as_slice)
    }

    /// The text of `key`.
    pub(super) fn text(&self, key: &str) -> Result<Option<&str>, Failure> {
        let Some(bytes) = self.bytes(key) else { return Ok(None) };
        std::str::from_utf8(bytes)
            .map(Some)
            .map_err(|_| Failure::Malformed(format!("query key {key:?} is not UTF-8. Try: percent-encoded UTF-8")))
    }

    /// Whether `key` stands, alone or with `true` or `1`; `false` and `0` count as absent.
    pub(super) fn flag(&self, key: &str) -> Result<bool, Failure> {
        match self.text(key)? {
            None | Some("false" | "0") => Ok(false),
            Some("" | "true" | "1") => Ok(true),
            Some(other) => Err(Failure::Malformed(format!("query key {key:?} = {other:?} is a switch. Try: ?{key}"))),
        }
    }

    /// `ack`, or `default`.
    pub(super) fn ack(&self, default: AckLevel) -> Result<AckLevel, Failure> {
        self.text("ack")?.map_or(Ok(default), |text| ack_level(text).map_err(Failure::Malformed))
    }

    /// When to give up: `timeout` seconds from now, or `default`.
    pub(super) fn deadline(&self, default: Duration) -> Result<Instant, Failure> {
        let within = match self.text("timeout")? {
            None => default,
            Some(text) => match text.parse::<f64>() {
                Ok(seconds) if (0.0..=MAX_TIMEOUT_S).contains(&seconds) => Duration::from_secs_f64(seconds),
                _ => {
                    let range = "must be seconds from 0 to 86400. Try: 10";
                    return Err(Failure::Malformed(format!("query key \"timeout\" = {text:?} {range}")));
                }
            },
        };
        Ok(Instant::now() + within)
    }

    /// A whole number.
    pub(super) fn number(&self, key: &str, default: u64) -> Result<u64, Failure> {
        let Some(text) = self.text(key)? else { return Ok(default) };
        text.parse()
            .map_err(|_| Failure::Malformed(format!("query key {key:?} = {text:?} is not a whole number. Try: 0")))
    }
}

/// The DS path in the path part of a request below `prefix`: one segment a component, each percent-decoded; or the
/// whole as one segment in the form `${CONFIG}\Users` (interface §4).
pub(super) fn ds_path(uri_path: &str, prefix: &str) -> Result<DsPath, Failure> {
    let rest = uri_path.strip_prefix(prefix).unwrap_or_default().trim_start_matches('/');
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    if rest.is_empty() {
        return Ok(DsPath::root());
    }
    let parts: Result<Vec<_>, _> = rest.split('/').map(|part| percent_decode_str(part).decode_utf8()).collect();
    let parts = parts.map_err(|_| Failure::Malformed("the path is not UTF-8. Try: percent-encoded UTF-8".into()))?;
    let path = match &parts[..] {
        [only] if only.starts_with("${") => DsPath::parse(only),
        parts => DsPath::from_components(parts.iter().map(|part| &**part)),
    };
    path.map_err(|error| Failure::Malformed(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_known_once_and_well_formed() {
        let parse = |text| Query::parse(Some(text), &["ack", "timeout", "recursive", "n"]);
        let query = parse("ack=applied&recursive&n=7&timeout=0.5").expect("good");
        assert_eq!(query.ack(AckLevel::Local), Ok(AckLevel::Applied));
        assert!(query.flag("recursive").expect("a flag"));
        assert_eq!(query.number("n", 0), Ok(7));
        assert!(query.deadline(Duration::ZERO).expect("good") > Instant::now());
        for (bad, named) in [("x=1", "\"x\""), ("n=1&n=2", "twice")] {
            let error = parse(bad).expect_err(bad).to_string();
            assert!(error.contains(named) && error.contains("Try"), "{error}");
        }
        assert!(parse("ack=never").expect("parses").ack(AckLevel::Local).is_err());
        for bad in ["timeout=-1", "timeout=NaN", "timeout=1e9", "timeout=x", "timeout=%FF"] {
            assert!(parse(bad).expect("parses").deadline(Duration::ZERO).is_err(), "{bad}");
        }
        assert!(parse("recursive=perhaps").expect("parses").flag("recursive").is_err());
    }

    #[test]
    fn a_path_is_one_segment_a_component() {
        let path = |text| ds_path(text, "/v1/ds").map(|path| path.to_string());
        assert_eq!(path("/v1/ds/"), Ok("/".into()));
        assert_eq!(path("/v1/ds"), Ok("/".into()));
        assert_eq!(path("/v1/ds/CONFIG/Default%20User"), Ok("/CONFIG/Default User".into()));
        assert_eq!(path("/v1/ds/a+b/%C3%BC"), Ok("/a+b/ü".into()));
        assert_eq!(path("/v1/ds/%24%7BCONFIG%7D%5CUsers%5Calice"), Ok("/CONFIG/Users/alice".into()));
        for bad in ["/v1/ds/a//b", "/v1/ds/%FF", "/v1/ds/a%2Fb", "/v1/ds/..", "/v1/ds/a%00"] {
            assert!(matches!(path(bad), Err(Failure::Malformed(_))), "{bad}");
        }
    }

    #[test]
    fn cursors() {
        assert_eq!(cursor("65537:3").map(|version| version.to_string()), Ok("65537:3".into()));
        for bad in ["", "1", "1:", ":1", "a:1", "1:2:3", "-1:2"] {
            assert!(cursor(bad).is_err(), "{bad}");
        }
    }
}
