//! What is known of each server parameter: name, aliases, type, range, default, effect, group (PAR-015 to PAR-098).
//!
//! Always: one line a parameter, in the order of the specification; names are found regardless of case and white space
//! (PAR-003). Never: a value — values are attributes of `/SERVER/Parameters`.

/// The number of a parameter in the specification: `ParamId(31)` is PAR-031.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ParamId(pub u16);

/// What a parameter's value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Any text.
    Text,
    /// A bare computer name (PAR-015).
    Name,
    /// An IP address.
    Address,
    /// A switch (PAR-002).
    Switch,
    /// A whole number within bounds.
    Count {
        /// The least permitted value.
        min: i64,
        /// The greatest permitted value.
        max: i64,
    },
    /// Whole seconds within bounds (PAR-011).
    Seconds {
        /// The least permitted value.
        min: i64,
        /// The greatest permitted value.
        max: i64,
    },
    /// A DSCP class name or 0 to 63 (PAR-054).
    Dscp,
    /// One directory.
    Directory,
    /// Directories, `;` between, `+` before one for its subtree (PAR-063).
    Directories,
    /// File extensions, `;` between (PAR-065).
    Extensions,
    /// Host names or addresses, `;` between (PAR-047).
    Hosts,
    /// DS paths, `;` between (PAR-080).
    DsPaths,
    /// `Class(attribute, …)` terms, `;` between (PAR-081).
    ClassAttributes,
    /// DS paths or `Class(attribute, …)` terms, `;` between (PAR-084).
    DsExclusions,
}

/// When a changed value takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// At once (PAR-007, PAR-008).
    Dynamic,
    /// When the backup's switchover service starts the next time.
    BackupRestart,
    /// When the service starts the next time.
    Restart,
    /// When the upgrade state is entered (PAR-086).
    UpgradeState,
    /// When the module named starts the next time.
    Module(&'static str),
}

/// The groups of PAR-001.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// The server names.
    Required,
    /// Present after installation.
    Packaged,
    /// Absent until an administrator adds it.
    Optional,
    /// The filters of the upgrade states.
    Customizable,
}

/// One parameter.
#[derive(Clone, Copy, Debug)]
pub struct Spec {
    /// Its number in the specification.
    pub id: ParamId,
    /// Its canonical name.
    pub name: &'static str,
    /// Other spellings that mean it (PAR-003).
    pub aliases: &'static [&'static str],
    /// What its value is.
    pub kind: Kind,
    /// What holds while it is absent; `None`: nothing.
    pub default: Option<&'static str>,
    /// When a change takes effect.
    pub effect: Effect,
    /// Which group it belongs to.
    pub group: Group,
}

const NO_MAX: i64 = u32::MAX as i64;

const fn count(min: i64, max: i64) -> Kind {
    Kind::Count { min, max }
}

const fn seconds(min: i64, max: i64) -> Kind {
    Kind::Seconds { min, max }
}

const fn spec(
    id: u16,
    name: &'static str,
    kind: Kind,
    default: Option<&'static str>,
    effect: Effect,
    group: Group,
) -> Spec {
    Spec { id: ParamId(id), name, aliases: &[], kind, default, effect, group }
}

const fn aliased(spec: Spec, aliases: &'static [&'static str]) -> Spec {
    Spec { aliases, ..spec }
}

/// An optional parameter that is read when the backup starts: what most are.
const fn optional(id: u16, name: &'static str, kind: Kind, default: Option<&'static str>) -> Spec {
    spec(id, name, kind, default, Effect::BackupRestart, Group::Optional)
}

const fn custom(id: u16, name: &'static str, kind: Kind, default: Option<&'static str>) -> Spec {
    spec(id, name, kind, default, Effect::UpgradeState, Group::Customizable)
}

const fn recovery(id: u16, name: &'static str, effect: Effect) -> Spec {
    spec(id, name, Kind::Switch, Some("0"), effect, Group::Optional)
}

use Effect::{Dynamic, Module, Restart};
use Group::{Optional, Packaged, Required};
use Kind::{
    Address, ClassAttributes, Directories, Directory, DsExclusions, DsPaths, Dscp, Extensions, Hosts, Name, Switch,
    Text,
};

/// Every parameter, in the order of the specification.
pub const ALL: &[Spec] = &[
    spec(15, "SwitchoverServer A", Name, None, Restart, Required),
    spec(16, "SwitchoverServer B", Name, None, Restart, Required),
    spec(18, "ForceSwitchoverFQDNs", Switch, Some("No"), Restart, Optional),
    spec(19, "SwitchoverServerFQDN A", Text, None, Restart, Optional),
    spec(20, "SwitchoverServerFQDN B", Text, None, Restart, Optional),
    spec(21, "Server A Address", Address, None, Restart, Optional),
    spec(22, "Server B Address", Address, None, Restart, Optional),
    optional(30, "Switchover Monitoring", Text, Some("TsServer")),
    spec(31, "Switchover TS Timeout", seconds(5, 60), Some("10"), Dynamic, Optional),
    aliased(
        spec(32, "Switchover TS Failure Retry Delay", seconds(1, NO_MAX), Some("1"), Dynamic, Optional),
        &["Switchover TS Retry Delay"],
    ),
    spec(33, "Switchover Max TS Failures", count(1, NO_MAX), Some("2"), Dynamic, Optional),
    optional(34, "Switchover IP Timeout", seconds(5, 60), Some("10")),
    optional(35, "Switchover IP Retry Delay", seconds(1, NO_MAX), Some("1")),
    optional(36, "Switchover Max Restarts", count(0, NO_MAX), Some("2")),
    optional(37, "Switchover Max Restarts Period", seconds(0, NO_MAX), Some("300")),
    optional(38, "Switchover Max Sequential Restarts", count(0, NO_MAX), Some("2")),
    optional(39, "Switchover Ping on Aux Connection", Switch, Some("0")),
    optional(40, "Switchover Primary Monitor Timeout", seconds(0, 300), Some("0")),
    optional(41, "Switchover Primary Monitor Ping Delay", seconds(0, 300), Some("0")),
    optional(42, "Switchover Primary Monitor Retry Ping Delay", seconds(0, 300), Some("0")),
    optional(43, "Switchover Primary Monitor Retry Count", count(1, 50), Some("2")),
    aliased(
        optional(44, "Switchover Unreachable Primary Ping Count", count(-1, NO_MAX), Some("0")),
        &["Unreachable Primary Ping Count"],
    ),
    aliased(
        optional(45, "Switchover Unreachable Primary Ping Delay", seconds(1, 300), Some("10")),
        &["Unreachable Primary Ping Delay"],
    ),
    optional(46, "Switchover Disable Gateway Ping", Switch, Some("Yes")),
    optional(47, "Switchover NetTest A", Hosts, None),
    optional(48, "Switchover NetTest B", Hosts, None),
    optional(49, "Switchover NetTest Timeout", seconds(1, NO_MAX), Some("1")),
    optional(50, "Switchover Notifier Reconnect Delay", seconds(5, 60), Some("5")),
    aliased(
        optional(51, "Switchover Reconnect Timeout", seconds(0, NO_MAX), Some("30")),
        // PAR-111: the name it had from 4.0 SU4 to SU6.
        &["Switchover Reconnect Delay"],
    ),
    optional(53, "Switchover Use QoS for Ping", Switch, Some("No")),
    optional(54, "Switchover QoS DSCP", Dscp, Some("AF41")),
    optional(60, "Switchover DS Request Timeout", seconds(1, NO_MAX), Some("120")),
    optional(61, "Switchover File Monitor Health Check Interval", seconds(0, NO_MAX), Some("60")),
    optional(62, "Switchover File Monitor Health Check Timeout", seconds(1, NO_MAX), Some("10")),
    spec(63, "CustomMirrorDir", Directories, Some(""), Dynamic, Packaged),
    spec(64, "InitialMirrorDir", Directories, Some(""), Effect::BackupRestart, Packaged),
    spec(65, "MirrorExceptions", Extensions, Some(""), Effect::BackupRestart, Packaged),
    optional(66, "Handler Path", Directory, None),
    optional(67, "Resource Path", Directory, None),
    optional(68, "I3Tables Path", Directory, None),
    optional(69, "Switchover Startup Timeout", seconds(1, NO_MAX), None),
    custom(80, "Custom Upgrade Synchronization Directories", DsPaths, Some("")),
    custom(81, "Custom Upgrade Attribute Exceptions", ClassAttributes, Some("")),
    custom(82, "Custom Upgrade File Synchronization Directories", Directories, Some("")),
    // Unset is not empty: PAR-065 applies while it is unset (PAR-083).
    custom(83, "Custom Upgrade File Synchronization Exceptions", Extensions, None),
    custom(84, "Switchover Upgrade Higher DS Exclusions", DsExclusions, Some("")),
    custom(85, "Switchover Upgrade Higher File Exclusions", Directories, Some("")),
    recovery(90, "Mail Interaction Recovery Enabled", Dynamic),
    recovery(91, "Mail Interaction Recovery Filter Enabled", Dynamic),
    recovery(92, "Chat Interaction Recovery Enabled", Module("WebProcessor")),
    recovery(93, "Callback Interaction Recovery Enabled", Module("WebProcessor")),
    recovery(94, "SMS Interaction Recovery Enabled", Module("WebProcessor")),
    recovery(95, "Socialconversation Interaction Recovery Enabled", Module("SMICEventBridge")),
    recovery(96, "Directmessage Interaction Recovery Enabled", Module("SMICEventBridge")),
    spec(97, "IonNotifier", Text, None, Restart, Optional),
    spec(98, "StatServer_DisableQPSLoggingOnBackup", Switch, Some("No"), Module("Statserver"), Optional),
];

/// Parameters that older releases had: without effect, named at start, never an error (PAR-110, PAR-112 to PAR-119).
pub const WITHDRAWN: &[(u16, &str)] = &[
    (112, "Switchover UDP Monitor"),
    (113, "Switchover UDP Maximum Ping Delay"),
    (114, "Switchover UDP Normal Retry Delay"),
    (115, "Switchover Max UDP Failures"),
    (116, "Enable Switchover Upgrade Mode"),
    (117, "Switchover Use WAN Optimizations for DS Sync"),
    (118, "Switchover Use Compression For DS Sync"),
    (119, "Switchover Use Compression for DS Request Sync"),
];

/// A name without white space and case: what names are compared by (PAR-003).
#[must_use]
pub fn normal(name: &str) -> String {
    name.chars().filter(|c| !c.is_whitespace()).flat_map(char::to_lowercase).collect()
}

/// The parameter of this name or alias.
#[must_use]
pub fn find(name: &str) -> Option<&'static Spec> {
    let name = normal(name);
    ALL.iter().find(|spec| normal(spec.name) == name || spec.aliases.iter().any(|alias| normal(alias) == name))
}

/// The parameter of this number; `None` where the specification has none that is public.
#[must_use]
pub fn by_id(id: ParamId) -> Option<&'static Spec> {
    ALL.binary_search_by_key(&id, |spec| spec.id).ok().map(|index| &ALL[index])
}

/// The number and name of a withdrawn parameter.
#[must_use]
pub fn withdrawn(name: &str) -> Option<(u16, &'static str)> {
    let name = normal(name);
    WITHDRAWN.iter().find(|(_, known)| normal(known) == name).copied()
}
