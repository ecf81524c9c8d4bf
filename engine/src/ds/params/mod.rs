//! Server parameters: the attributes of `/SERVER/Parameters`, read by the names, types and ranges of the specification.
//!
//! Always: an absent parameter has its default (PAR-005); a bad value found in the tree is clamped or ignored with a
//! warning (PAR-006), a bad value given to `params set` is refused; what is not registered is kept and shown as text.
//! Never: a parameter store of its own — values replicate because they are part of the tree (REP-013).

pub mod registry;
pub mod value;

use std::collections::HashMap;

use ringpair_wire::ds::{DsPath, Value};
use serde_json::{Value as Json, json};

use crate::ds::{
    edit::{EditError, Operation, ValueEdit},
    tree::TreeSnapshot,
};
pub use registry::{Effect, Group, Kind, ParamId, Spec};
pub use value::{MirrorDir, ParamValue, ValueError};

/// Where parameters live (interface §4).
pub const PATH: &str = "/SERVER/Parameters";

/// The most characters that the original's tools take for one value (REP-029).
const ORIGINAL_MAX_CHARS: usize = 2000;

/// Why a parameter cannot be read or set.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParamError {
    /// No parameter has this name.
    #[error("no parameter is called {name:?}. Try: {near}")]
    Unknown {
        /// As given.
        name: String,
        /// The nearest known name, or where to look.
        near: String,
    },
    /// The parameter was withdrawn.
    #[error("parameter {0:?} was withdrawn and has no effect (PAR-110). Try: leaving it out")]
    Withdrawn(&'static str),
    /// The value is not permitted.
    #[error(transparent)]
    Value(#[from] ValueError),
    /// The edit is refused.
    #[error(transparent)]
    Edit(#[from] EditError),
}

/// Something about a parameter in the tree that an administrator should know, once (PAR-006, PAR-110).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParamWarning {
    /// The canonical name, or the name found.
    pub name: String,
    /// What is wrong and what is used instead.
    pub text: String,
}

/// The parameters as the tree has them.
#[derive(Clone, Debug, Default)]
pub struct Parameters {
    /// Texts by parameter.
    texts: HashMap<ParamId, String>,
    /// Names and texts of what is not registered, in the order of names.
    others: Vec<(String, String)>,
    warnings: Vec<ParamWarning>,
}

impl Parameters {
    /// Reads them from a snapshot; cheap (one object).
    #[must_use]
    pub fn read(tree: &TreeSnapshot) -> Self {
        let attributes = path().and_then(|path| tree.get(&path).cloned());
        let pairs = attributes.iter().flat_map(|entry| entry.attributes.iter()).map(|attribute| {
            let texts = attribute.values.iter().filter_map(|value| match value {
                Value::Text(text) => Some(&**text),
                Value::Bytes(_) | Value::Content { .. } => None,
            });
            (attribute.name.to_string(), texts.collect::<Vec<_>>().join(";"))
        });
        Self::from_pairs(pairs)
    }

    /// The same from names and texts, as the configuration file has them.
    #[must_use]
    pub fn from_pairs(pairs: impl IntoIterator<Item = (String, String)>) -> Self {
        let mut parameters = Self::default();
        let mut by_alias: Vec<(&'static Spec, String, String)> = Vec::new();
        for (name, text) in pairs {
            match registry::find(&name) {
                Some(spec) if registry::normal(spec.name) == registry::normal(&name) => {
                    parameters.texts.insert(spec.id, text);
                }
                Some(spec) => by_alias.push((spec, name, text)),
                None => parameters.note_other(name, text),
            }
        }
        for (spec, alias, text) in by_alias {
            let used = if parameters.texts.contains_key(&spec.id) { "ignored beside it" } else { "used for it" };
            parameters.warn(spec.name, format!("{alias:?} is an older name of {:?}: {used}", spec.name));
            parameters.texts.entry(spec.id).or_insert(text);
        }
        parameters.check();
        parameters
    }

    /// What an administrator should know about the values found.
    #[must_use]
    pub fn warnings(&self) -> &[ParamWarning] {
        &self.warnings
    }

    /// Whether the parameter is set in the tree: an explicit value holds in every detection profile (interface §3).
    #[must_use]
    pub fn is_explicit(&self, id: ParamId) -> bool {
        self.texts.contains_key(&id)
    }

    /// The value that counts: the one set, clamped, or the default; `None` where there is neither.
    #[must_use]
    pub fn get(&self, id: ParamId) -> Option<ParamValue> {
        let spec = registry::by_id(id)?;
        let default = || spec.default.and_then(|text| value::parse(spec, text).ok());
        match self.texts.get(&id) {
            None => default(),
            Some(text) => value::parse(spec, text).map_or_else(|error| error.nearest.or_else(default), Some),
        }
    }

    /// The value set explicitly, clamped; `None` where there is none that can be read.
    #[must_use]
    pub fn explicit(&self, id: ParamId) -> Option<ParamValue> {
        self.is_explicit(id).then(|| self.get(id)).flatten()
    }

    /// The text set explicitly, as it stands in the tree.
    #[must_use]
    pub fn explicit_text(&self, id: ParamId) -> Option<&str> {
        self.texts.get(&id).map(String::as_str)
    }

    /// A number or seconds; `None` where neither value nor default exists.
    #[must_use]
    pub fn number(&self, id: ParamId) -> Option<i64> {
        match self.get(id)? {
            ParamValue::Number(number) => Some(number),
            ParamValue::Dscp(number) => Some(number.into()),
            _ => None,
        }
    }

    /// A switch; false where neither value nor default exists.
    #[must_use]
    pub fn switch(&self, id: ParamId) -> bool {
        matches!(self.get(id), Some(ParamValue::Switch(true)))
    }

    /// A text.
    #[must_use]
    pub fn text(&self, id: ParamId) -> Option<String> {
        match self.get(id)? {
            ParamValue::Text(text) => Some(text),
            _ => None,
        }
    }

    /// A list; empty where neither value nor default exists.
    #[must_use]
    pub fn list(&self, id: ParamId) -> Vec<String> {
        match self.get(id) {
            Some(ParamValue::List(list)) => list,
            _ => Vec::new(),
        }
    }

    /// A list of directories; empty where neither value nor default exists.
    #[must_use]
    pub fn directories(&self, id: ParamId) -> Vec<MirrorDir> {
        match self.get(id) {
            Some(ParamValue::Directories(directories)) => directories,
            _ => Vec::new(),
        }
    }

    /// The directories that are mirrored continuously (PAR-063).
    #[must_use]
    pub fn custom_mirror_dirs(&self) -> Vec<MirrorDir> {
        self.directories(ParamId(63))
    }

    /// The directories that are mirrored once, when the backup starts (PAR-064).
    #[must_use]
    pub fn initial_mirror_dirs(&self) -> Vec<MirrorDir> {
        self.directories(ParamId(64))
    }

    /// The extensions that are not mirrored, in lower case without dot (PAR-065).
    #[must_use]
    pub fn mirror_exceptions(&self) -> Vec<String> {
        self.list(ParamId(65))
    }

    /// `params ls`: every registered parameter, then what else stands there.
    #[must_use]
    pub fn to_json(&self) -> Json {
        let others =
            self.others.iter().map(|(name, text)| json!({"name": name, "type": "text", "value": text, "set": true}));
        registry::ALL.iter().map(|spec| self.describe(spec)).chain(others).collect()
    }

    /// `params get`: one parameter, by name or alias.
    ///
    /// # Errors
    /// [`ParamError::Unknown`], [`ParamError::Withdrawn`].
    pub fn get_json(&self, name: &str) -> Result<Json, ParamError> {
        if let Ok(spec) = find(name) {
            return Ok(self.describe(spec));
        }
        let normal = registry::normal(name);
        match self.others.iter().find(|(other, _)| registry::normal(other) == normal) {
            Some((name, text)) => Ok(json!({"name": name, "type": "text", "value": text, "set": true})),
            None => Err(find(name).err().unwrap_or_else(|| unknown(name))),
        }
    }

    fn describe(&self, spec: &Spec) -> Json {
        let set = self.texts.get(&spec.id);
        let warning = self.warnings.iter().find(|warning| warning.name == spec.name).map(|warning| &warning.text);
        let mut described = json!({
            "name": spec.name,
            "id": format!("PAR-{:03}", spec.id.0),
            "type": type_name(spec.kind),
            "default": spec.default,
            "value": set.map(String::as_str).or(spec.default),
            "set": set.is_some(),
            "effective": self.get(spec.id).map(|value| value_json(&value)),
            "restart": spec.effect != Effect::Dynamic,
            "takes_effect": effect_text(spec.effect),
            "group": group_name(spec.group),
        });
        if let (Kind::Count { min, max } | Kind::Seconds { min, max }, Some(fields)) =
            (spec.kind, described.as_object_mut())
        {
            fields.insert("min".into(), min.into());
            fields.insert("max".into(), if max == i64::from(u32::MAX) { Json::Null } else { max.into() });
        }
        if let (Some(warning), Some(fields)) = (warning, described.as_object_mut()) {
            fields.insert("warning".into(), warning.as_str().into());
        }
        described
    }

    fn note_other(&mut self, name: String, text: String) {
        if let Some((id, known)) = registry::withdrawn(&name) {
            self.warn(known, format!("ignored, withdrawn (PAR-{id})"));
        }
        self.others.push((name, text));
    }

    fn warn(&mut self, name: &str, text: String) {
        self.warnings.push(ParamWarning { name: name.to_owned(), text });
    }

    /// Collects the warnings about values, one a parameter, and about what contradicts one another.
    fn check(&mut self) {
        for spec in registry::ALL {
            let Some(text) = self.texts.get(&spec.id) else { continue };
            if text.chars().count() > ORIGINAL_MAX_CHARS {
                let count = text.chars().count();
                self.warn(
                    spec.name,
                    format!("{count} characters: the original takes about {ORIGINAL_MAX_CHARS} (REP-029)"),
                );
            }
            let Some(text) = self.texts.get(&spec.id) else { continue };
            if let Err(error) = value::parse(spec, text) {
                let used = match (&error.nearest, spec.default) {
                    (Some(nearest), _) => value_json(nearest).to_string(),
                    (None, Some(default)) => format!("the default {default:?}"),
                    (None, None) => "nothing".into(),
                };
                self.warn(
                    spec.name,
                    format!("value {:?} is not permitted ({}): {used} is used", error.value, error.expected),
                );
            }
        }
        if self.is_explicit(ParamId(21)) != self.is_explicit(ParamId(22)) {
            self.warn("Server A Address", "only one of the two server addresses is set: ignored (PAR-022)".into());
        }
        let interval = self.number(ParamId(61)).unwrap_or(0);
        if interval != 0 && self.number(ParamId(62)).unwrap_or(0) >= interval {
            let text = "is not below the health check interval (PAR-062)".into();
            self.warn("Switchover File Monitor Health Check Timeout", text);
        }
        if self.switch(ParamId(91)) && !self.switch(ParamId(90)) {
            let text = "has no effect without Mail Interaction Recovery Enabled (PAR-091)".into();
            self.warn("Mail Interaction Recovery Filter Enabled", text);
        }
    }
}

/// `params set`: checks strictly and gives the operation that sets the parameter under its canonical name, removing
/// older spellings of it from the tree.
///
/// # Errors
/// [`ParamError`].
pub fn set(tree: &TreeSnapshot, name: &str, text: &str) -> Result<Operation, ParamError> {
    let spec = find(name)?;
    value::parse(spec, text)?;
    let path = DsPath::parse(PATH).map_err(EditError::from)?;
    let mut attributes = vec![(spec.name.to_owned(), ValueEdit::Set(vec![Value::Text(text.into())]))];
    let canonical = ringpair_wire::ds::fold(spec.name);
    for attribute in tree.get(&path).iter().flat_map(|entry| entry.attributes.iter()) {
        let same = registry::find(&attribute.name).is_some_and(|found| found.id == spec.id);
        if same && ringpair_wire::ds::fold(&attribute.name) != canonical {
            attributes.push((attribute.name.to_string(), ValueEdit::Unset));
        }
    }
    Ok(Operation::Put { path, class: None, replace: false, attributes })
}

/// The parameter of this name or alias.
///
/// # Errors
/// [`ParamError::Withdrawn`], or [`ParamError::Unknown`] with the nearest name.
pub fn find(name: &str) -> Result<&'static Spec, ParamError> {
    if let Some(spec) = registry::find(name) {
        return Ok(spec);
    }
    Err(registry::withdrawn(name).map_or_else(|| unknown(name), |(_, known)| ParamError::Withdrawn(known)))
}

fn unknown(name: &str) -> ParamError {
    let wanted = registry::normal(name);
    let near = registry::ALL
        .iter()
        .map(|spec| spec.name)
        .find(|known| !wanted.is_empty() && registry::normal(known).contains(&wanted))
        .map_or_else(|| "ringpair params ls".to_owned(), |near| format!("{near:?}"));
    ParamError::Unknown { name: name.to_owned(), near }
}

fn path() -> Option<DsPath> {
    DsPath::parse(PATH).ok()
}

fn value_json(value: &ParamValue) -> Json {
    match value {
        ParamValue::Text(text) => json!(text),
        ParamValue::Switch(on) => json!(on),
        ParamValue::Number(number) => json!(number),
        ParamValue::Dscp(number) => json!(number),
        ParamValue::List(list) => json!(list),
        ParamValue::Directories(directories) => {
            directories.iter().map(|dir| format!("{}{}", if dir.recursive { "+" } else { "" }, dir.path)).collect()
        }
    }
}

const fn type_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Text => "text",
        Kind::Name => "computer name",
        Kind::Address => "IP address",
        Kind::Switch => "switch",
        Kind::Count { .. } => "count",
        Kind::Seconds { .. } => "seconds",
        Kind::Dscp => "DSCP",
        Kind::Directory => "directory",
        Kind::Directories => "directories",
        Kind::Extensions => "extensions",
        Kind::Hosts => "hosts",
        Kind::DsPaths => "DS paths",
        Kind::ClassAttributes => "class attributes",
        Kind::DsExclusions => "DS paths or class attributes",
    }
}

fn effect_text(effect: Effect) -> String {
    match effect {
        Effect::Dynamic => "at once".into(),
        Effect::BackupRestart => "restart of the backup".into(),
        Effect::Restart => "restart".into(),
        Effect::UpgradeState => "next upgrade state".into(),
        Effect::Module(name) => format!("restart of {name}"),
    }
}

const fn group_name(group: Group) -> &'static str {
    match group {
        Group::Required => "required",
        Group::Packaged => "packaged",
        Group::Optional => "optional",
        Group::Customizable => "customizable",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ds::{edit::resolve, testing::tree};

    fn parameters(pairs: &[(&str, &str)]) -> Parameters {
        Parameters::from_pairs(pairs.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())))
    }

    fn warning(parameters: &Parameters) -> String {
        parameters
            .warnings()
            .iter()
            .map(|warning| format!("{}: {}", warning.name, warning.text))
            .collect::<Vec<_>>()
            .join("|")
    }

    // REQ: PAR-003, PAR-111
    #[test]
    fn names_match_regardless_of_case_white_space_and_alias() {
        let found = parameters(&[
            ("switchover  ts RETRY delay", "3"),
            ("Switchover MaxTS Failures", "4"),
            ("Switchover Reconnect Delay", "7"),
        ]);
        assert_eq!(
            (found.number(ParamId(32)), found.number(ParamId(33)), found.number(ParamId(51))),
            (Some(3), Some(4), Some(7))
        );
        assert!(
            warning(&found).contains("older name of \"Switchover Reconnect Timeout\": used"),
            "{}",
            warning(&found)
        );
        let both = parameters(&[("Switchover Reconnect Delay", "7"), ("Switchover Reconnect Timeout", "8")]);
        assert_eq!(both.number(ParamId(51)), Some(8), "the alias counts only where the name is absent");
        assert_eq!(find("unreachable primary ping count").unwrap().name, "Switchover Unreachable Primary Ping Count");
    }

    // REQ: PAR-005, PAR-006, PAR-022, PAR-062, PAR-091
    #[test]
    fn bad_values_in_the_tree_are_clamped_or_ignored_with_one_warning() {
        let found = parameters(&[
            ("Switchover TS Timeout", "3"),
            ("Switchover Max TS Failures", "many"),
            ("CustomMirrorDir", "+/a;b;/c"),
            ("Server A Address", "10.0.0.1"),
            ("Mail Interaction Recovery Filter Enabled", "perhaps"),
        ]);
        assert_eq!(found.number(ParamId(31)), Some(5));
        assert_eq!(found.number(ParamId(33)), Some(2));
        assert_eq!(found.custom_mirror_dirs().len(), 2);
        assert!(!found.switch(ParamId(91)) && found.is_explicit(ParamId(31)) && !found.is_explicit(ParamId(45)));
        assert_eq!((found.number(ParamId(45)), found.explicit(ParamId(45))), (Some(10), None));
        assert_eq!(found.warnings().len(), 5, "{}", warning(&found));
        assert!(warning(&found).contains("Switchover TS Timeout: value \"3\" is not permitted"), "{}", warning(&found));
    }

    // REQ: PAR-110
    #[test]
    fn withdrawn_parameters_are_named_and_have_no_effect() {
        let found = parameters(&[("Switchover UDP Monitor", "1"), ("Custom Thing", "x")]);
        assert_eq!(warning(&found), "Switchover UDP Monitor: ignored, withdrawn (PAR-112)");
        assert!(matches!(find("switchover udp monitor"), Err(ParamError::Withdrawn(_))));
        assert_eq!(found.get_json("custom thing").unwrap()["value"], "x");
    }

    // REQ: REP-013, PAR-007, PAR-008
    #[test]
    fn setting_goes_through_the_tree() {
        let mut state = tree(&["/server/PARAMETERS SwitchoverTSRetryDelay=3"]);
        let operation = set(&state, "switchover ts retry delay", "4").unwrap();
        state.apply(&resolve(&state, operation).unwrap().unwrap(), Default::default());
        let found = Parameters::read(&state);
        assert_eq!((found.number(ParamId(32)), found.warnings().len()), (Some(4), 0), "the older spelling is gone");
        let shown = found.get_json("Switchover TS Retry Delay").unwrap();
        assert_eq!(
            (&shown["name"], &shown["value"], &shown["restart"], &shown["min"]),
            (&json!("Switchover TS Failure Retry Delay"), &json!("4"), &json!(false), &json!(1))
        );
        assert_eq!(found.get_json("Switchover QoS DSCP").unwrap()["restart"], true);
        let listed = found.to_json();
        assert_eq!(listed.as_array().unwrap().len(), registry::ALL.len());
        let dynamic = registry::ALL.iter().filter(|spec| spec.effect == Effect::Dynamic);
        assert_eq!(dynamic.map(|spec| spec.id.0).collect::<Vec<_>>(), [31, 32, 33, 63, 90, 91]);
        assert!(set(&state, "Switchover TS Timeout", "61").unwrap_err().to_string().contains("5 to 60. Try: 60"));
        assert!(set(&state, "TS Timeout", "6").unwrap_err().to_string().contains("Try: \"Switchover TS Timeout\""));
    }
}
