//! `ringpair ds`: the configuration tree.
//!
//! Always holds: values that are not UTF-8 travel as base64; exports and imports stream and are never held whole.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs::File,
    io::{self, Read, Write},
    os::unix::ffi::OsStrExt,
    path::Path,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http_body_util::{BodyExt, StreamBody};
use hyper::{
    Method,
    body::{Bytes, Frame},
};
use ringpair_wire::{
    ds::{DsPath, MAX_VALUE_BYTES},
    id::AckLevel,
};
use serde_json::{Value as Json, json};
use tokio::sync::mpsc;

use super::{
    args::{DsAction, Shared},
    client::{Body, CliError, Client, Events, Progress, ds_url, encoded, json_body, nothing},
    native,
    ops::written,
    plain, print, print_json, printable,
    status::bytes,
    with_query,
};

pub(super) async fn ds(shared: &Shared, client: &Client, action: DsAction) -> Result<(), CliError> {
    match action {
        DsAction::Put { path, class, replace, edits, ack } => {
            let edits = parsed(&edits)?;
            if native::fits(edits.values().flat_map(Edit::values)) {
                return native::put(shared, client, &path, (class.as_deref(), replace), &edits, ack);
            }
            let mut body = json!({"attributes": attributes(edits)});
            if let Some(class) = class {
                body["class"] = class.into();
            }
            let replace = replace.then(|| "replace".to_owned());
            let target = with_query(&ds_url(&path), &[level(ack), replace, client.timeout_query()]);
            change(shared, client, Method::PUT, &target, json_body(&body)).await
        }
        DsAction::Unset { path, attributes, ack } => {
            let edits = attributes.into_iter().map(|name| (name, Edit::Unset)).collect();
            native::put(shared, client, &path, (None, false), &edits, ack)
        }
        DsAction::Rm { path, recursive, ack } => native::remove(shared, client, &path, recursive, ack),
        DsAction::Get { path } => {
            let object = client.get(&ds_url(&path)).await?;
            if shared.json { print_json(&object) } else { print(&render(&object)) }
        }
        DsAction::Ls { path } => {
            let list = client.get(&format!("{}?list", ds_url(&path))).await?;
            if shared.json {
                return print_json(&list);
            }
            list["children"].as_array().into_iter().flatten().try_for_each(|child| print(&plain(child)))
        }
        DsAction::Digest { path } => {
            let digest = client.get(&format!("{}?digest", ds_url(&path))).await?;
            if shared.json {
                return print_json(&digest);
            }
            print(&format!("{}  {} objects  {}", plain(&digest["digest"]), digest["objects"], plain(&digest["path"])))
        }
        DsAction::Tree { path } => tree(shared, client, &path).await,
        DsAction::Export { path } => export(client, &path).await,
        DsAction::Import { file, ack } => import(shared, client, &file, ack).await,
        DsAction::Watch { path, from } => {
            let from = from.map(|from| format!("from={from}"));
            let watch = Some(format!("watch={}", encoded(path.as_str())));
            let response = client.open(Method::GET, &with_query("/v1/ds", &[watch, from]), nothing()).await?;
            let mut events = Events::new(response, client.stream_ends());
            while let Some(event) = events.next().await? {
                if event.kind == "change" {
                    print(&event.data)?;
                }
            }
            Err(CliError::Failed("the member ended the stream. Try: ringpair ds watch --from the last version".into()))
        }
    }
}

fn level(ack: Option<AckLevel>) -> Option<String> {
    ack.map(|ack| format!("ack={}", ack.name()))
}

async fn change(shared: &Shared, client: &Client, method: Method, target: &str, body: Body) -> Result<(), CliError> {
    let done = client.call(method, target, body).await?;
    if shared.json { print_json(&done) } else { print(&written(&done)) }
}

/// What is to happen to one attribute.
#[derive(Debug, PartialEq)]
pub(super) enum Edit {
    Set(Vec<Vec<u8>>),
    Add(Vec<Vec<u8>>),
    Remove(Vec<Vec<u8>>),
    Unset,
}

impl Edit {
    /// The values that it names.
    pub(super) fn values(&self) -> &[Vec<u8>] {
        match self {
            Self::Set(values) | Self::Add(values) | Self::Remove(values) => values,
            Self::Unset => &[],
        }
    }
}

/// The edits by attribute.
pub(super) type Edits = BTreeMap<String, Edit>;

/// What `ATTR=VALUE`, `ATTR+=VALUE`, `ATTR-=VALUE`, `ATTR=@FILE` ask for; the same again adds a value.
fn parsed(edits: &[impl AsRef<OsStr>]) -> Result<Edits, CliError> {
    let mut all = Edits::new();
    for edit in edits {
        let (name, new) = one_edit(edit.as_ref())?;
        match (all.get_mut(&name), new) {
            (None, new) => {
                all.insert(name, new);
            }
            (Some(Edit::Set(values)), Edit::Set(more))
            | (Some(Edit::Add(values)), Edit::Add(more))
            | (Some(Edit::Remove(values)), Edit::Remove(more)) => values.extend(more),
            (Some(_), _) => {
                let text =
                    format!("{name:?} is given in two ways. Try: one of =, += and -= for each attribute of a call");
                return Err(CliError::Usage(text));
            }
        }
    }
    Ok(all)
}

/// Edits as the HTTP call takes them.
fn attributes(edits: Edits) -> Json {
    let values = |values: Vec<Vec<u8>>| values.into_iter().map(value).collect::<Vec<_>>();
    let fields = edits.into_iter().map(|(name, edit)| {
        let json = match edit {
            Edit::Set(set) => Json::from(values(set)),
            Edit::Add(add) => json!({ "add": values(add) }),
            Edit::Remove(remove) => json!({ "remove": values(remove) }),
            Edit::Unset => Json::Null,
        };
        (name, json)
    });
    Json::Object(fields.collect())
}

/// Which edit a list of values becomes.
type MakeEdit = fn(Vec<Vec<u8>>) -> Edit;

fn one_edit(edit: &OsStr) -> Result<(String, Edit), CliError> {
    let usage = |what: &str| CliError::Usage(format!("{} {what}. Try: Extension=101", edit.display()));
    let all = edit.as_bytes();
    let at = all.iter().position(|byte| *byte == b'=').ok_or_else(|| usage("is not ATTR=VALUE"))?;
    let (name, text) = (&all[..at], &all[at + 1..]);
    let (name, how): (&[u8], MakeEdit) = match name.split_last() {
        Some((b'+', name)) => (name, Edit::Add),
        Some((b'-', name)) => (name, Edit::Remove),
        _ => (name, Edit::Set),
    };
    let name = std::str::from_utf8(name).map_err(|_| usage("has a name that is not UTF-8"))?;
    if name.is_empty() {
        return Err(usage("has no name before '='"));
    }
    let value = match text {
        [b'@', b'@', ..] => text[1..].to_vec(),
        [b'@', file @ ..] => file_value(Path::new(OsStr::from_bytes(file)))?,
        text => text.to_vec(),
    };
    Ok((name.to_owned(), how(vec![value])))
}

/// A value as JSON: text, or base64 where it is not UTF-8.
fn value(bytes: Vec<u8>) -> Json {
    match String::from_utf8(bytes) {
        Ok(text) => Json::String(text),
        Err(error) => json!({"base64": STANDARD.encode(error.as_bytes())}),
    }
}

fn file_value(path: &Path) -> Result<Vec<u8>, CliError> {
    let mut whole = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_VALUE_BYTES as u64 + 1).read_to_end(&mut whole))
        .map_err(|error| CliError::Usage(format!("@{}: {error}. Try: a readable file", path.display())))?;
    if whole.len() > MAX_VALUE_BYTES {
        let text = format!("@{} is longer than {MAX_VALUE_BYTES} bytes. Try: a mirrored directory", path.display());
        return Err(CliError::Usage(text));
    }
    Ok(whole)
}

/// One object for people.
fn render(object: &Json) -> String {
    let version = &object["version"];
    let class =
        object["class"].as_str().filter(|class| !class.is_empty()).map(|class| format!(" ({})", printable(class)));
    let head =
        format!("{}{} {}:{}", plain(&object["path"]), class.unwrap_or_default(), version["epoch"], version["seq"]);
    let attributes = object["attributes"].as_object().into_iter().flatten();
    let rows: Vec<Vec<String>> = attributes
        .flat_map(|(name, values)| {
            let values = values.as_array().into_iter().flatten().enumerate();
            values.map(move |(index, value)| {
                let name = if index == 0 { printable(name) } else { String::new() };
                vec![format!("  {name}"), shown_value(value)]
            })
        })
        .collect();
    if rows.is_empty() { head } else { format!("{head}\n{}", super::table(&rows)) }
}

fn shown_value(value: &Json) -> String {
    match value["base64"].as_str() {
        Some(text) => format!("base64:{text}"),
        None => plain(value),
    }
}

/// Whole lines out of an export that comes piece by piece.
async fn each_line(
    client: &Client,
    path: &DsPath,
    mut line: impl FnMut(&[u8]) -> Result<(), CliError>,
) -> Result<(), CliError> {
    let response = client.open(Method::GET, &format!("{}?export", ds_url(path)), nothing()).await?;
    let mut body = response.into_body();
    let mut rest = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| CliError::Failed(format!("the export broke off: {error}")))?;
        let Ok(data) = frame.into_data() else { continue };
        rest.extend_from_slice(&data);
        let Some(end) = rest.iter().rposition(|byte| *byte == b'\n') else { continue };
        let left = rest.split_off(end + 1);
        rest.split_inclusive(|byte| *byte == b'\n').try_for_each(&mut line)?;
        rest = left;
    }
    if rest.is_empty() { Ok(()) } else { Err(CliError::Failed("the export ended within a line".into())) }
}

async fn export(client: &Client, path: &DsPath) -> Result<(), CliError> {
    let mut out = io::BufWriter::with_capacity(256 << 10, io::stdout().lock());
    each_line(client, path, |line| Ok(out.write_all(line)?)).await?;
    Ok(out.flush()?)
}

async fn tree(shared: &Shared, client: &Client, path: &DsPath) -> Result<(), CliError> {
    if shared.json {
        return export(client, path).await;
    }
    let depth = path.components().count();
    let mut out = io::BufWriter::new(io::stdout().lock());
    each_line(client, path, |line| {
        let object: Json = serde_json::from_slice(line).unwrap_or_default();
        let at = object["path"].as_str().unwrap_or_default();
        let level = at.split('/').skip(1).count().saturating_sub(depth.max(1));
        let name = at.rsplit('/').next().unwrap_or_default();
        let class = object["class"].as_str().filter(|class| !class.is_empty());
        let class = class.map(|class| format!("  ({})", printable(class))).unwrap_or_default();
        Ok(writeln!(out, "{}{}{class}", "  ".repeat(level), printable(name))?)
    })
    .await?;
    Ok(out.flush()?)
}

/// `ds import`: the file streams to the member, which reports every bad line by number.
async fn import(shared: &Shared, client: &Client, file: &Path, ack: Option<AckLevel>) -> Result<(), CliError> {
    let unreadable =
        |error: io::Error| CliError::Usage(format!("{}: {error}. Try: a readable file, or -", file.display()));
    let (mut reader, total): (Box<dyn Read + Send>, Option<u64>) = if file == Path::new("-") {
        (Box::new(io::stdin()), None)
    } else {
        let opened = File::open(file).map_err(unreadable)?;
        let meta = opened.metadata().map_err(unreadable)?;
        if meta.is_dir() {
            return Err(unreadable(io::ErrorKind::IsADirectory.into()));
        }
        (Box::new(opened), meta.is_file().then_some(meta.len()))
    };
    let (sender, receiver) = mpsc::channel::<io::Result<Bytes>>(4);
    let mut progress = Progress::new(shared.json);
    tokio::task::spawn_blocking(move || {
        let mut sent = 0_u64;
        loop {
            let mut piece = vec![0; 64 << 10];
            let got = reader.read(&mut piece);
            let piece = match got {
                Ok(0) => return progress.clear(),
                Ok(read) => {
                    piece.truncate(read);
                    sent += read as u64;
                    Ok(Bytes::from(piece))
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => Err(error),
            };
            let failed = piece.is_err();
            if sender.blocking_send(piece).is_err() || failed {
                return progress.clear();
            }
            let of = total.map(|total| format!(" of {}", bytes(total))).unwrap_or_default();
            progress.show(&format!("importing: {}{of}", bytes(sent)));
        }
    });
    let pieces = futures_util::stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|piece| (piece.map(Frame::data), receiver))
    });
    let target = with_query("/v1/ds", &[level(ack), client.timeout_query()]);
    let done = client.call(Method::POST, &target, StreamBody::new(pieces).boxed()).await?;
    if shared.json {
        return print_json(&done);
    }
    print(&format!("{} objects, {}", done["operations"], written(&done)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_become_json() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), b"\xff\x00").expect("written");
        let from_file = format!("Blob=@{}", file.path().display());
        let edits = ["A=1", "A=2", "B+=x=y", "C-=z", "D=", "E=@@at", &from_file];
        let expected = json!({
            "A": ["1", "2"], "B": {"add": ["x=y"]}, "C": {"remove": ["z"]}, "D": [""], "E": ["@at"], "Blob": [{"base64": "/wA="}],
        });
        assert_eq!(attributes(parsed(&edits).expect("good")), expected);
        let raw = OsStr::from_bytes(b"A=\xfe");
        assert_eq!(attributes(parsed(&[raw]).expect("good")), json!({"A": [{"base64": "/g=="}]}));
    }

    #[test]
    fn bad_edits_name_themselves() {
        for bad in ["A", "=1", "+=1", "A=@/no/such/file"] {
            let error = parsed(&[bad]).expect_err(bad);
            assert!(matches!(error, CliError::Usage(_)) && error.to_string().contains("Try"), "{bad}: {error}");
        }
        assert!(matches!(parsed(&["A=1", "A+=2"]), Err(CliError::Usage(_))));
    }

    #[test]
    fn an_object_is_shown_aligned() {
        let object = json!({"path": "/C/a", "class": "User", "attributes": {"Extension": ["101"], "W": ["S", {"base64": "/w=="}]},
            "version": {"epoch": 3, "seq": 9}});
        assert_eq!(render(&object), "/C/a (User) 3:9\n  Extension  101\n  W          S\n             base64:/w==");
    }
}
