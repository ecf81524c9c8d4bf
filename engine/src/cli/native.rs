//! Single changes of the tree by the native client: no runtime, no JSON on the way, the same results as over HTTP.
//!
//! Always: the exit codes of interface §2, and the document that HTTP answers. Never: a change sent twice.

use std::{io, time::Duration};

use ringpair_client::{
    AttributeEdit, Client as Native, Error, Failure, FailureCode, How, Operation, Options, Outcome, Report, ValueRef,
};
use ringpair_wire::{
    ds::{CONTENT_FROM_BYTES, DsPath},
    id::AckLevel,
};
use serde_json::json;

use super::{
    args::Shared,
    client::{CliError, Client, GRACE, active_is, unknown},
    ds::{Edit, Edits},
    ops::written,
    print, print_json,
};

/// What all values of one change may have natively; more goes over HTTP.
const MAX_VALUES_BYTES: usize = 512 << 10;

/// Whether values can go natively: long ones travel as content, which HTTP takes.
pub(super) fn fits<'a>(values: impl Iterator<Item = &'a Vec<u8>> + Clone) -> bool {
    values.clone().all(|value| value.len() <= CONTENT_FROM_BYTES)
        && values.map(|value| value.len() + 8).sum::<usize>() <= MAX_VALUES_BYTES
}

/// `ds put` and `ds unset`.
pub(super) fn put(
    shared: &Shared,
    client: &Client,
    path: &DsPath,
    (class, replace): (Option<&str>, bool),
    edits: &Edits,
    ack: Option<AckLevel>,
) -> Result<(), CliError> {
    let edit = |(name, edit)| {
        let (name, edit): (&'_ String, &'_ Edit) = (name, edit);
        let how = match edit {
            Edit::Set(_) => How::Set,
            Edit::Add(_) => How::Add,
            Edit::Remove(_) => How::Remove,
            Edit::Unset => How::Unset,
        };
        let value = |value| std::str::from_utf8(value).map_or(ValueRef::Bytes(value), ValueRef::Text);
        AttributeEdit { name: name.as_str(), how, values: edit.values().iter().map(|bytes| value(bytes)).collect() }
    };
    let attributes = edits.iter().map(edit).collect();
    change(shared, client, path, Operation::Put { path: path.as_str(), class, replace, attributes }, ack)
}

/// `ds rm`.
pub(super) fn remove(
    shared: &Shared,
    client: &Client,
    path: &DsPath,
    recursive: bool,
    ack: Option<AckLevel>,
) -> Result<(), CliError> {
    change(shared, client, path, Operation::Remove { path: path.as_str(), recursive, missing_ok: false }, ack)
}

fn change(
    shared: &Shared,
    client: &Client,
    path: &DsPath,
    operation: Operation<'_>,
    ack: Option<AckLevel>,
) -> Result<(), CliError> {
    let options = Options { ack, timeout: client.timeout(), patience: Duration::ZERO, ..Options::default() };
    let mut native = Native::connect([client.socket()], options).map_err(|error| not_connected(client, error))?;
    native.submit(&[operation]).map_err(|error| CliError::Usage(error.to_string()))?;
    let report = match client.timeout() {
        None => native.wait(),
        Some(timeout) => native.wait_for(timeout + GRACE),
    };
    let Some(Report { outcome, .. }) = report else {
        return Err(CliError::TimedOut("the member did not answer in time. Try: a longer --timeout".into()));
    };
    let (version, level, alone) = match outcome {
        Outcome::Reached { version, level, alone } => (version, level, alone),
        Outcome::Unknown { version: Some(version), why } => {
            return Err(CliError::TimedOut(format!("{why}{}", unknown(&version.to_string()))));
        }
        Outcome::Unknown { version: None, why } => {
            return Err(CliError::Unreachable(format!("{why}; whether the change was taken is unknown. Try: again")));
        }
        Outcome::Failed(failure) => return Err(refused(failure)),
    };
    let done = json!({"path": path.as_str(), "version": version, "level": level, "alone": alone});
    if shared.json { print_json(&done) } else { print(&written(&done)) }
}

fn not_connected(client: &Client, error: Error) -> CliError {
    match error {
        Error::Unreachable { source, .. }
            if matches!(source.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) =>
        {
            CliError::TimedOut("the member did not answer in time. Try: ringpair status".into())
        }
        Error::Unreachable { source, .. } => client.unreachable(&source),
        other => CliError::Failed(other.to_string()),
    }
}

/// The exit code and message of a failure, as HTTP's (interface §6).
fn refused(failure: Failure) -> CliError {
    let mut message = failure.message;
    if let Some((name, address)) = &failure.active {
        message.push_str(&active_is(name, address));
    }
    match failure.code {
        None => CliError::Unreachable(message),
        Some(FailureCode::Malformed | FailureCode::TooLarge) => CliError::Usage(message),
        Some(FailureCode::NotActive | FailureCode::Refused) => CliError::Refused(message),
        Some(FailureCode::NotReached) => CliError::TimedOut(message),
        Some(_) => CliError::Failed(message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_values_go_by_http() {
        let sizes = |sizes: &[usize]| fits(sizes.iter().map(|size| vec![0; *size]).collect::<Vec<_>>().iter());
        assert!(sizes(&[]) && sizes(&[0, CONTENT_FROM_BYTES]));
        assert!(!sizes(&[CONTENT_FROM_BYTES + 1]) && !sizes(&[CONTENT_FROM_BYTES; 9]));
    }

    #[test]
    fn failures_have_the_exit_codes_of_http() {
        let table = [
            (FailureCode::Malformed, 2),
            (FailureCode::TooLarge, 2),
            (FailureCode::NotActive, 4),
            (FailureCode::Refused, 4),
            (FailureCode::NotReached, 5),
            (FailureCode::NotFound, 1),
            (FailureCode::Busy, 1),
            (FailureCode::Forbidden, 1),
        ];
        for (code, exit) in table {
            let active = (code == FailureCode::NotActive).then(|| ("b".into(), "h:1".into()));
            let error = refused(Failure { code: Some(code), message: "no".into(), active });
            assert_eq!(format!("{:?}", error.code()), format!("{:?}", std::process::ExitCode::from(exit)), "{code:?}");
            assert_eq!(error.to_string().contains("b (h:1)"), code == FailureCode::NotActive, "{error}");
        }
        let gone = refused(Failure { code: None, message: "no".into(), active: None });
        assert!(matches!(gone, CliError::Unreachable(_)));
    }
}
