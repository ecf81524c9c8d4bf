//! The JSON forms of the tree (interface §4, §6, §8): objects, lists, digests, lines of an export, edits that come in.
//!
//! Always: an object of any size is written in pieces of at most some [`CHUNK_BYTES`], contents read as they are sent;
//! what comes in is bounded before it is kept, and values of more than 64 KiB go to the content store as they are met.
//! Never: a line half accepted — a bad one is reported by its number, and the transaction with it refused.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, Read},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use ringpair_wire::{
    ds::{Attribute, ContentId, DsPath, MAX_VALUE_BYTES, Object, Value},
    id::Version,
};
use serde_json::{Map, Value as Json, json};

use crate::ds::{
    content::{ContentError, ContentStore},
    digest::Digest,
    edit::{EditError, MAX_TRANSACTION_BYTES, Operation, TransactionError, ValueEdit},
    tree::TreeSnapshot,
};

/// How much of an export comes at once, in bytes; a piece may be a third longer (base64) or, where one small object
/// ends it, by that object.
pub const CHUNK_BYTES: usize = 48 << 10;

/// `{"epoch":3,"seq":1042}`.
#[must_use]
pub fn version(version: Version) -> Json {
    json!({"epoch": version.epoch.0, "seq": version.seq.0})
}

/// `{"path","digest","objects"}` (interface §8).
#[must_use]
pub fn digest(path: &DsPath, (digest, objects): (Digest, u64)) -> Json {
    json!({"path": path.as_str(), "digest": digest.to_string(), "objects": objects})
}

/// `{"path","children":[…]}` (interface §8): the paths of the direct children; `None` if there is no such object.
#[must_use]
pub fn children(tree: &TreeSnapshot, path: &DsPath) -> Option<Json> {
    let shown = match tree.get(path) {
        Some(entry) => entry.path.clone(),
        None if path.is_root() => path.clone(),
        None => return None,
    };
    let children: Vec<&str> = tree.children(path).map(|child| child.path.as_str()).collect();
    Some(json!({"path": shown.as_str(), "children": children}))
}

/// An object without reading contents: a large value stands as `{"content": DIGEST, "bytes": N, "text": BOOL}`. For
/// logs, watches of what changed, and the divergence archive's list; what a user reads or exports is [`Export`].
#[must_use]
pub fn summary(object: &Object) -> Json {
    let attributes: Map<String, Json> = object
        .attributes
        .iter()
        .map(|attribute| (attribute.name.to_string(), attribute.values.iter().map(value_summary).collect()))
        .collect();
    json!({
        "path": object.path.as_str(),
        "class": &*object.class,
        "attributes": attributes,
        "version": version(object.version),
    })
}

/// A value without reading contents.
#[must_use]
pub fn value_summary(value: &Value) -> Json {
    match value {
        Value::Text(text) => Json::String(text.to_string()),
        Value::Bytes(bytes) => json!({"base64": STANDARD.encode(bytes)}),
        Value::Content { id, len, text } => json!({"content": id.to_string(), "bytes": len, "text": text}),
    }
}

enum Piece {
    Bytes(Vec<u8>),
    Content { id: ContentId, len: u64, text: bool },
}

/// A content on its way out.
struct Open {
    id: ContentId,
    file: File,
    left: u64,
    text: bool,
    hasher: blake3::Hasher,
    /// The beginning of a character, or of a group of three bytes, that the last piece ended in.
    carried: Vec<u8>,
}

/// Writes objects as JSON, one a line, in bounded pieces: an iterator of bytes for a response's body.
///
/// An error ends it; what came before is not a whole document then, which the receiver sees by the missing end.
pub struct Export {
    tree: TreeSnapshot,
    store: ContentStore,
    root: DsPath,
    /// The folded path of the object that came last; `None` at the start.
    at: Option<String>,
    single: bool,
    pieces: VecDeque<Piece>,
    open: Option<Open>,
    ended: bool,
}

impl Export {
    /// The subtree at `path`, parents before children, as JSON lines.
    #[must_use]
    pub fn subtree(tree: TreeSnapshot, store: ContentStore, path: DsPath) -> Self {
        let (pieces, open) = (VecDeque::new(), None);
        Self { tree, store, root: path, at: None, single: false, pieces, open, ended: false }
    }

    /// One object, as one line; nothing if it is not there.
    #[must_use]
    pub fn object(tree: TreeSnapshot, store: ContentStore, path: DsPath) -> Self {
        Self { single: true, ..Self::subtree(tree, store, path) }
    }

    fn next_object(&mut self) -> bool {
        let entry = match &self.at {
            None => self
                .tree
                .get(&self.root)
                .or_else(|| (!self.single).then(|| self.tree.next_after(self.root.key(), &self.root)).flatten()),
            Some(_) if self.single => None,
            Some(at) => self.tree.next_after(at, &self.root),
        };
        let Some(entry) = entry.cloned() else { return false };
        self.at = Some(entry.path.key().to_owned());
        push_object(&mut self.pieces, entry.object());
        true
    }

    fn next_chunk(&mut self) -> Result<Vec<u8>, ContentError> {
        let mut chunk = Vec::new();
        while chunk.len() < CHUNK_BYTES {
            if let Some(open) = &mut self.open {
                match read_piece(open, &mut chunk) {
                    Ok(true) => {}
                    Ok(false) => self.open = None,
                    Err(error) => {
                        if let ContentError::Damaged(id) = &error {
                            self.store.set_aside(id);
                        }
                        return Err(error);
                    }
                }
                continue;
            }
            match self.pieces.pop_front() {
                Some(Piece::Bytes(bytes)) => chunk.extend_from_slice(&bytes),
                Some(Piece::Content { id, len, text }) => {
                    let (file, hasher) = (self.store.open_content(&id)?, blake3::Hasher::new());
                    self.open = Some(Open { id, file, left: len, text, hasher, carried: Vec::new() });
                }
                None if self.next_object() => {}
                None => break,
            }
        }
        Ok(chunk)
    }
}

impl Iterator for Export {
    type Item = Result<Vec<u8>, ContentError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let chunk = self.next_chunk();
        self.ended = !matches!(&chunk, Ok(bytes) if !bytes.is_empty());
        match chunk {
            Ok(bytes) if bytes.is_empty() => None,
            chunk => Some(chunk),
        }
    }
}

/// An object's line, where it is short and reads no content: what a thread may render that must not wait.
#[must_use]
pub fn short_line(object: &Object) -> Option<Vec<u8>> {
    let mut left = CHUNK_BYTES;
    for attribute in &object.attributes {
        left = left.checked_sub(attribute.name.len())?;
        for value in &attribute.values {
            let bytes = match value {
                Value::Text(text) => text.len(),
                Value::Bytes(bytes) => bytes.len(),
                Value::Content { .. } => return None,
            };
            left = left.checked_sub(bytes + 1)?;
        }
    }
    let mut pieces = VecDeque::new();
    push_object(&mut pieces, object);
    match pieces.pop_front() {
        Some(Piece::Bytes(line)) => Some(line),
        _ => None,
    }
}

/// Renders an object; its contents stay references.
fn push_object(pieces: &mut VecDeque<Piece>, object: &Object) {
    let mut line = Vec::with_capacity(256);
    line.extend_from_slice(b"{\"path\":");
    push_text(&mut line, object.path.as_str());
    line.extend_from_slice(b",\"class\":");
    push_text(&mut line, &object.class);
    line.extend_from_slice(b",\"attributes\":{");
    for (index, attribute) in object.attributes.iter().enumerate() {
        if index > 0 {
            line.push(b',');
        }
        push_text(&mut line, &attribute.name);
        line.extend_from_slice(b":[");
        push_values(pieces, &mut line, attribute);
        line.push(b']');
    }
    let version = object.version;
    line.extend_from_slice(
        format!("}},\"version\":{{\"epoch\":{},\"seq\":{}}}}}\n", version.epoch, version.seq).as_bytes(),
    );
    pieces.push_back(Piece::Bytes(line));
}

fn push_values(pieces: &mut VecDeque<Piece>, line: &mut Vec<u8>, attribute: &Attribute) {
    for (index, value) in attribute.values.iter().enumerate() {
        if index > 0 {
            line.push(b',');
        }
        match value {
            Value::Text(text) => push_text(line, text),
            Value::Bytes(bytes) => {
                line.extend_from_slice(b"{\"base64\":\"");
                line.extend_from_slice(STANDARD.encode(bytes).as_bytes());
                line.extend_from_slice(b"\"}");
            }
            Value::Content { id, len, text } => {
                line.extend_from_slice(if *text { b"\"" } else { b"{\"base64\":\"" });
                pieces.push_back(Piece::Bytes(std::mem::take(line)));
                pieces.push_back(Piece::Content { id: *id, len: *len, text: *text });
                line.extend_from_slice(if *text { b"\"" } else { b"\"}" });
            }
        }
    }
}

fn push_text(line: &mut Vec<u8>, text: &str) {
    line.extend_from_slice(Json::from(text).to_string().as_bytes());
}

/// Writes the next piece of a content into `chunk`; false: it was the last.
fn read_piece(open: &mut Open, chunk: &mut Vec<u8>) -> Result<bool, ContentError> {
    let damaged = || ContentError::Damaged(open.id);
    let want = open.left.min(CHUNK_BYTES as u64);
    let mut bytes = std::mem::take(&mut open.carried);
    let carried = bytes.len();
    let got = (&mut open.file).take(want).read_to_end(&mut bytes).map_err(|source| reading(open.id, source))?;
    if got as u64 != want {
        return Err(damaged());
    }
    open.hasher.update(&bytes[carried..]);
    open.left -= want;
    let last = open.left == 0;
    if last && open.hasher.finalize().as_bytes() != &open.id.0 {
        return Err(damaged());
    }
    let whole = if open.text {
        match std::str::from_utf8(&bytes) {
            Ok(_) => bytes.len(),
            Err(error) if error.error_len().is_none() && !last => error.valid_up_to(),
            Err(_) => return Err(damaged()),
        }
    } else if last {
        bytes.len()
    } else {
        bytes.len() / 3 * 3
    };
    open.carried = bytes.split_off(whole);
    if open.text {
        let text = std::str::from_utf8(&bytes).map_err(|_| damaged())?;
        let quoted = Json::from(text).to_string();
        chunk.extend_from_slice(&quoted.as_bytes()[1..quoted.len() - 1]);
    } else {
        chunk.extend_from_slice(STANDARD.encode(&bytes).as_bytes());
    }
    Ok(!last)
}

fn reading(id: ContentId, source: io::Error) -> ContentError {
    ContentError::Io { what: "reading", path: id.to_string().into(), source }
}

/// Reads the body of `PUT /v1/ds/<path>`: `{"class","attributes"}` (interface §6).
///
/// # Errors
/// [`EditError`] names what is wrong.
pub fn parse_put(path: DsPath, replace: bool, body: &[u8], store: &ContentStore) -> Result<Operation, EditError> {
    let mut fields = parse_fields(body, &["class", "attributes", "path", "version"])?;
    if let Some(Json::String(named)) = fields.get("path")
        && DsPath::parse(named)? != path
    {
        return Err(EditError::Json(format!(
            "\"path\" is {named}, but the request is for {path}. Try: leaving it out"
        )));
    }
    let (class, attributes) = parse_object(&mut fields, store)?;
    Ok(Operation::Put { path, class, replace, attributes })
}

/// Reads one line of an import or transaction: an object as exported, or `{"path":…,"deleted":true}` (with
/// `"recursive":true` for what lies below). An exported `"version"` is accepted and has no effect: the change gets a
/// version of its own.
///
/// # Errors
/// [`EditError`] names what is wrong.
pub fn parse_line(line: &[u8], store: &ContentStore) -> Result<Operation, EditError> {
    let known = ["path", "class", "attributes", "version", "deleted", "recursive", "replace"];
    let mut fields = parse_fields(line, &known)?;
    let path = match fields.get("path") {
        Some(Json::String(path)) => DsPath::parse(path)?,
        Some(other) => return Err(wrong("path", "a text", other)),
        None => return Err(EditError::Json("\"path\" is missing. Try: {\"path\":\"/CONFIG/x\",…}".into())),
    };
    let flag = |name: &str| match fields.get(name) {
        None => Ok(false),
        Some(Json::Bool(flag)) => Ok(*flag),
        Some(other) => Err(wrong(name, "true or false", other)),
    };
    let (deleted, recursive, replace) = (flag("deleted")?, flag("recursive")?, flag("replace")?);
    if deleted {
        return Ok(Operation::Remove { path, recursive, missing_ok: true });
    }
    let (class, attributes) = parse_object(&mut fields, store)?;
    Ok(Operation::Put { path, class, replace, attributes })
}

/// Collects the JSON lines of a transaction from a body that comes in pieces.
#[derive(Debug)]
pub struct TransactionParser {
    store: ContentStore,
    line: Vec<u8>,
    number: u64,
    bytes: usize,
    operations: Vec<(u64, Operation)>,
    errors: TransactionError,
}

impl TransactionParser {
    /// An empty transaction; large values go to `store` as they are met.
    #[must_use]
    pub fn new(store: ContentStore) -> Self {
        let (line, operations, errors) = (Vec::new(), Vec::new(), TransactionError::none());
        Self { store, line, number: 0, bytes: 0, operations, errors }
    }

    /// Takes the next piece of the body, split anywhere. Blocks where a large value is stored.
    ///
    /// # Errors
    /// [`EditError::TooLong`] once more than 256 MiB have come: the transaction is refused.
    pub fn push(&mut self, mut piece: &[u8]) -> Result<(), EditError> {
        self.bytes = self.bytes.saturating_add(piece.len());
        if self.bytes > MAX_TRANSACTION_BYTES {
            return Err(EditError::TooLong {
                what: "transaction".into(),
                bytes: self.bytes as u64,
                limit: MAX_TRANSACTION_BYTES as u64,
                hint: "several imports",
            });
        }
        while let Some(end) = piece.iter().position(|byte| *byte == b'\n') {
            self.line.extend_from_slice(&piece[..end]);
            piece = &piece[end + 1..];
            self.end_line();
        }
        self.line.extend_from_slice(piece);
        Ok(())
    }

    /// The operations with the numbers of their lines, for [`crate::ds::edit::resolve_all`].
    ///
    /// # Errors
    /// [`TransactionError`] with every bad line.
    pub fn finish(mut self) -> Result<Vec<(u64, Operation)>, TransactionError> {
        self.end_line();
        self.errors.check()?;
        Ok(self.operations)
    }

    fn end_line(&mut self) {
        self.number += 1;
        let line = std::mem::take(&mut self.line);
        if line.trim_ascii().is_empty() {
            return;
        }
        match parse_line(&line, &self.store) {
            Ok(operation) if self.errors.count == 0 => self.operations.push((self.number, operation)),
            Ok(_) => {}
            Err(error) => {
                self.operations.clear();
                self.errors.push(self.number, error);
            }
        }
    }
}

fn wrong(field: &str, expected: &str, got: &Json) -> EditError {
    let whole = got.to_string();
    let mut got: String = whole.chars().take(60).collect();
    if got.len() < whole.len() {
        got.push('…');
    }
    EditError::Json(format!("{field:?} is {got}, expected {expected}"))
}

fn parse_fields(text: &[u8], known: &[&str]) -> Result<Map<String, Json>, EditError> {
    let fields = match serde_json::from_slice(text) {
        Ok(Json::Object(fields)) => fields,
        Ok(other) => return Err(wrong("line", "an object {…}", &other)),
        Err(error) => return Err(EditError::Json(format!("not JSON: {error}"))),
    };
    match fields.keys().find(|key| !known.contains(&key.as_str())) {
        Some(key) => Err(EditError::Json(format!("unknown key {key:?}. Try: {}", known.join(", ")))),
        None => Ok(fields),
    }
}

type Parts = (Option<String>, Vec<(String, ValueEdit)>);

fn parse_object(fields: &mut Map<String, Json>, store: &ContentStore) -> Result<Parts, EditError> {
    let class = match fields.remove("class") {
        None | Some(Json::Null) => None,
        Some(Json::String(class)) => Some(class),
        Some(other) => return Err(wrong("class", "a text", &other)),
    };
    let attributes = match fields.remove("attributes") {
        None => Map::new(),
        Some(Json::Object(attributes)) => attributes,
        Some(other) => return Err(wrong("attributes", "an object {NAME: [VALUE, …]}", &other)),
    };
    let attributes = attributes.into_iter().map(|(name, edit)| parse_edit(&name, edit, store).map(|edit| (name, edit)));
    Ok((class, attributes.collect::<Result<_, _>>()?))
}

/// `null`, a value, a list of values, `{"add":[…]}` or `{"remove":[…]}`.
fn parse_edit(name: &str, edit: Json, store: &ContentStore) -> Result<ValueEdit, EditError> {
    let list = |json: Json| match json {
        Json::Array(values) => values.into_iter().map(|value| parse_value(name, value, store)).collect(),
        value => parse_value(name, value, store).map(|value| vec![value]),
    };
    match edit {
        Json::Null => Ok(ValueEdit::Unset),
        Json::Object(mut fields) if fields.len() == 1 && fields.contains_key("add") => {
            list(fields.remove("add").unwrap_or_default()).map(ValueEdit::Add)
        }
        Json::Object(mut fields) if fields.len() == 1 && fields.contains_key("remove") => {
            list(fields.remove("remove").unwrap_or_default()).map(ValueEdit::Remove)
        }
        values => list(values).map(ValueEdit::Set),
    }
}

fn parse_value(name: &str, value: Json, store: &ContentStore) -> Result<Value, EditError> {
    let (stored, bytes) = match value {
        Json::String(text) => {
            check_len(name, text.len())?;
            (store.text_value(&text), text.len())
        }
        Json::Object(fields) if fields.len() == 1 && fields.get("base64").is_some_and(Json::is_string) => {
            let text = fields.get("base64").and_then(Json::as_str).unwrap_or_default();
            // Padding may stand for two of the bytes that the length of the text allows.
            check_len(name, (text.len() / 4 * 3).saturating_sub(2))?;
            let bytes = STANDARD.decode(text).map_err(|error| EditError::Values {
                name: name.to_owned(),
                problem: format!("not base64: {error}"),
                hint: "the standard alphabet with padding",
            })?;
            // What is text is text, however it was written: one value, one form.
            match std::str::from_utf8(&bytes) {
                Ok(text) => (store.text_value(text), bytes.len()),
                Err(_) => (store.bytes_value(&bytes), bytes.len()),
            }
        }
        other => return Err(wrong(name, "a text, {\"base64\":\"…\"}, or a list of those", &other)),
    };
    stored.map_err(|error| EditError::Store { bytes, message: error.to_string() })
}

/// Bounds a value before it is kept.
fn check_len(name: &str, bytes: usize) -> Result<(), EditError> {
    if bytes > MAX_VALUE_BYTES {
        return Err(EditError::TooLong {
            what: format!("value of {name:?}"),
            bytes: bytes as u64,
            limit: MAX_VALUE_BYTES as u64,
            hint: "a file in a mirrored directory",
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ds::{
        edit::resolve_all,
        testing::{path, text, tree, version},
    };

    fn store() -> (tempfile::TempDir, ContentStore) {
        let dir = tempfile::tempdir().unwrap();
        let store = ContentStore::open(dir.path()).unwrap();
        (dir, store)
    }

    fn whole(export: Export) -> String {
        let mut bytes = Vec::new();
        for chunk in export {
            let chunk = chunk.unwrap();
            assert!(chunk.len() < 3 * CHUNK_BYTES, "{}", chunk.len());
            bytes.extend(chunk);
        }
        String::from_utf8(bytes).unwrap()
    }

    fn import(lines: &str, store: &ContentStore, size: usize) -> Result<Vec<(u64, Operation)>, TransactionError> {
        let mut parser = TransactionParser::new(store.clone());
        lines.as_bytes().chunks(size).for_each(|piece| parser.push(piece).unwrap());
        parser.finish()
    }

    #[test]
    fn objects_have_the_form_of_the_interface() {
        let (_dir, store) = store();
        let tree = tree(&["/CONFIG/Users/alice Extension=101 Workgroups=Sales,Support"]);
        let shown = whole(Export::object(tree.clone(), store.clone(), path("/config/users/ALICE")));
        let expected = concat!(
            r#"{"path":"/CONFIG/Users/alice","class":"","attributes":{"Extension":["101"],"#,
            r#""Workgroups":["Sales","Support"]},"version":{"epoch":65537,"seq":1}}"#,
            "\n"
        );
        assert_eq!(shown, expected);
        assert_eq!(
            summary(tree.get(&path("/CONFIG/Users/alice")).unwrap()),
            serde_json::from_str::<Json>(expected).unwrap()
        );
        let line = |at: &str| short_line(tree.get(&path(at)).unwrap().object());
        assert_eq!(line("/config/users/ALICE").map(String::from_utf8), Some(Ok(shown)), "the same by the short way");
        assert_eq!(whole(Export::object(tree.clone(), store, path("/none"))), "");
        assert_eq!(children(&tree, &path("/config")), Some(json!({"path": "/CONFIG", "children": ["/CONFIG/Users"]})));
        assert_eq!(children(&tree, &path("/none")), None);
        let root = DsPath::root();
        assert_eq!(digest(&root, tree.digest(&root))["objects"], 3);
    }

    // REQ: REP-012
    #[test]
    fn an_export_imports_to_an_equal_tree() {
        let (_dir, store) = store();
        let mut tree = tree(&["/a/b x=1,2", "/A/c y=z", "/other k=v"]);
        // Characters of several bytes, quotes and control characters, across the borders of pieces.
        let long_text = "é\"\u{1}\\🙂".repeat(20_000);
        let long_bytes: Vec<u8> = (0..150_001_u32).map(|n| (n % 251) as u8 | 0x80).collect();
        let values = vec![
            store.text_value(&long_text).unwrap(),
            store.bytes_value(&long_bytes).unwrap(),
            Value::Bytes([0xff, 0].into()),
            text("q\"uote\n"),
        ];
        let attribute = Attribute { name: "Mail Body".into(), values };
        let change = ringpair_wire::ds::Change::Put {
            path: path("/a/mail"),
            class: Some("Mail".into()),
            replace: false,
            attributes: vec![attribute],
        };
        tree.apply(&change, version(9));
        let line = |at: &str| short_line(tree.get(&path(at)).unwrap().object());
        assert!(line("/a/mail").is_none() && line("/a/b").is_some(), "contents are read by whoever may wait");
        let exported = whole(Export::subtree(tree.clone(), store.clone(), DsPath::root()));
        assert_eq!(exported.lines().count(), 5);
        let (_other_dir, other_store) = self::store();
        let operations = import(&exported, &other_store, 7_001).unwrap();
        let mut imported = TreeSnapshot::default();
        for change in resolve_all(&imported, operations).unwrap() {
            imported.apply(&change, version(1));
        }
        assert_eq!(imported.digest(&DsPath::root()), tree.digest(&DsPath::root()));
        assert_eq!(other_store.missing(tree.contents()), [], "contents came along");
        assert_eq!(whole(Export::subtree(tree, store, path("/a/b"))).lines().count(), 1);
    }

    #[test]
    fn a_missing_or_damaged_content_is_an_error_not_half_a_value() {
        let (_dir, store) = store();
        let mut tree = TreeSnapshot::default();
        let values = vec![Value::Content { id: ContentId([3; 32]), len: 70_000, text: true }];
        let attributes = vec![Attribute { name: "x".into(), values }];
        tree.apply(
            &ringpair_wire::ds::Change::Put { path: path("/a"), class: None, replace: false, attributes },
            version(1),
        );
        let mut export = Export::subtree(tree, store, DsPath::root());
        assert!(matches!(export.next(), Some(Err(ContentError::Missing(_)))));
        assert!(export.next().is_none());
    }

    #[test]
    fn every_bad_line_is_reported_by_its_number() {
        let (_dir, store) = store();
        let lines = concat!(
            r#"{"path":"/a","attributes":{"x":"1","y":null,"z":{"add":["2"]},"w":{"remove":["3"]},"b":{"base64":"/w=="}}}"#,
            "\n\n",
            r#"{"path":"/b","deleted":true,"recursive":true}"#,
            "\n"
        );
        let operations = import(lines, &store, 5).unwrap();
        assert_eq!(operations.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [1, 3]);
        let Operation::Put { attributes, .. } = &operations[0].1 else { panic!() };
        let edit = |name: &str| attributes.iter().find(|(key, _)| key == name).unwrap().1.clone();
        assert_eq!((edit("x"), edit("y")), (ValueEdit::Set(vec![text("1")]), ValueEdit::Unset));
        assert_eq!((edit("z"), edit("w")), (ValueEdit::Add(vec![text("2")]), ValueEdit::Remove(vec![text("3")])));
        assert_eq!(edit("b"), ValueEdit::Set(vec![Value::Bytes([0xff].into())]));
        for (line, expected) in [
            ("nonsense", "not JSON"),
            ("[1]", "expected an object"),
            (r#"{"class":"x"}"#, "\"path\" is missing"),
            (r#"{"path":"a"}"#, "starts with neither"),
            (r#"{"path":"/a","attribute":{}}"#, "unknown key \"attribute\""),
            (r#"{"path":"/a","attributes":{"x":[1]}}"#, "\"x\" is 1, expected a text"),
            (r#"{"path":"/a","attributes":{"x":{"base64":"?"}}}"#, "not base64"),
            (r#"{"path":"/a","deleted":"yes"}"#, "true or false"),
        ] {
            let error = import(&format!("{{\"path\":\"/ok\"}}\n{line}\n{line}"), &store, 1000).unwrap_err();
            assert_eq!(error.errors.iter().map(|error| error.line).collect::<Vec<_>>(), [2, 3], "{line}");
            assert!(error.to_string().contains(expected), "{line}: {error}");
        }
        let path = path("/a");
        assert!(parse_put(path.clone(), false, br#"{"path":"/b"}"#, &store).is_err());
        assert!(matches!(parse_put(path, true, br#"{"class":"U"}"#, &store), Ok(Operation::Put { replace: true, .. })));
    }

    #[test]
    fn what_comes_in_is_bounded() {
        let (_dir, store) = store();
        let mut parser = TransactionParser::new(store);
        let piece = vec![b'\n'; 64 << 20];
        for _ in 0..4 {
            parser.push(&piece).unwrap();
        }
        assert!(matches!(parser.push(b"x"), Err(EditError::TooLong { .. })));
    }

    #[test]
    fn bytes_that_are_text_are_text() {
        let (_dir, store) = store();
        let value = parse_value("x", json!({"base64": STANDARD.encode("text")}), &store).unwrap();
        assert_eq!(value, text("text"));
    }
}
