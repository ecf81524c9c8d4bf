//! `ringpair keys`: the pair's authority and the members' certificates.

use time::OffsetDateTime;

use super::{
    args::{KeysAction, Shared},
    client::CliError,
    print, print_json, table,
};
use crate::keys::{self, Init, KeysError, Shown};

fn failed(error: KeysError) -> CliError {
    match error {
        KeysError::Argument { .. } => CliError::Usage(error.to_string()),
        error => CliError::Failed(error.to_string()),
    }
}

pub(super) fn keys(shared: &Shared, action: KeysAction) -> Result<(), CliError> {
    let shown = match action {
        KeysAction::Init { dir, members, pair, years } => {
            let members =
                members.iter().map(|text| keys::parse_member(text)).collect::<Result<_, _>>().map_err(failed)?;
            keys::init(&Init { dir, members, pair, years }).map_err(failed)?
        }
        KeysAction::Renew { dir, years } => keys::renew(&dir, years).map_err(failed)?,
        KeysAction::Show { dir } => {
            let dir = match dir {
                Some(dir) => dir,
                None => super::config(shared)?.security.dir,
            };
            keys::show(&dir, OffsetDateTime::now_utc()).map_err(failed)?
        }
    };
    if shared.json {
        return print_json(&serde_json::json!({ "keys": shown }));
    }
    print(&table(&shown.iter().map(row).collect::<Vec<_>>()))
}

fn row(shown: &Shown) -> Vec<String> {
    let who = shown.member.map_or_else(|| shown.kind.to_owned(), |member| format!("{} {member}", shown.kind));
    let days = format!("until {} ({} days)", shown.not_after, shown.days_left);
    let hosts = shown.hosts.join(",");
    vec![who, shown.pair.clone(), shown.fingerprint.clone(), days, hosts, shown.path.display().to_string()]
}
