//! Comparing two listings of a root, path by path.
//!
//! Always: both lists are in the order of [`MirrorPath`](ringpair_wire::mirror::MirrorPath), and one step looks at one entry of each: the cost in memory
//! does not depend on the size of the trees. Never: a difference because of an order that is not kept; such a list is
//! an error of its sender.

use std::cmp::Ordering;

use ringpair_wire::mirror::{Entry, Kind, Meta};

/// How the two sides differ at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Difference {
    /// Nothing is there on the other side.
    OnlyHere,
    /// Nothing is here.
    OnlyThere,
    /// Another kind, or content that is, or may be, another.
    Content,
    /// Mode, owner, group, or a directory's or link's time.
    Meta,
}

impl Difference {
    /// For people, seen from the active member.
    #[must_use]
    pub const fn describe(self) -> &'static str {
        match self {
            Self::OnlyHere => "only on the active",
            Self::OnlyThere => "only on the backup",
            Self::Content => "content differs",
            Self::Meta => "mode, owner or times differ",
        }
    }
}

/// How two descriptions of one path differ; a changed time of a file means that its content may differ.
#[must_use]
pub fn differ(here: &Meta, there: &Meta) -> Option<Difference> {
    let time = |meta: &Meta| (meta.mtime_s, meta.mtime_ns);
    if here.kind != there.kind || here.size != there.size || here.rdev != there.rdev {
        return Some(Difference::Content);
    }
    if here.kind == Kind::File && time(here) != time(there) {
        return Some(Difference::Content);
    }
    let mode = |meta: &Meta| if meta.kind == Kind::Symlink { 0 } else { meta.mode };
    let equal = (mode(here), here.uid, here.gid, time(here)) == (mode(there), there.uid, there.gid, time(there));
    (!equal).then_some(Difference::Meta)
}

/// One step of a comparison: which of the two entries is consumed (`Less`: the one here, `Greater`: the one there,
/// `Equal`: both), and how they differ. An entry that is `None` is the end of its list; not both may be.
#[must_use]
pub fn step(here: Option<&Entry>, there: Option<&Entry>) -> (Ordering, Option<Difference>) {
    let order = match (here, there) {
        (Some(here), Some(there)) => here.path.cmp(&there.path),
        (Some(_), None) => Ordering::Less,
        (None, _) => Ordering::Greater,
    };
    let difference = match (order, here, there) {
        (Ordering::Equal, Some(here), Some(there)) => {
            let digests = (here.digest, there.digest);
            let by_content = matches!(digests, (Some(a), Some(b)) if a != b).then_some(Difference::Content);
            by_content.or_else(|| differ(&here.meta, &there.meta))
        }
        (Ordering::Less, ..) => Some(Difference::OnlyHere),
        _ => Some(Difference::OnlyThere),
    };
    (order, difference)
}

#[cfg(test)]
mod tests {
    use ringpair_wire::mirror::MirrorPath;

    use super::*;

    fn entry(path: &str, size: u64, mtime_s: i64, mode: u16) -> Entry {
        let meta = Meta { kind: Kind::File, mode, uid: 0, gid: 0, size, mtime_s, mtime_ns: 5, rdev: 0 };
        Entry { path: MirrorPath::parse(path.as_bytes()).unwrap(), meta, digest: None }
    }

    // REQ: REP-025
    #[test]
    fn every_kind_of_difference_is_found() {
        let a = entry("a", 1, 1, 0o644);
        assert_eq!(step(Some(&a), Some(&a)), (Ordering::Equal, None));
        assert_eq!(step(Some(&a), None), (Ordering::Less, Some(Difference::OnlyHere)));
        assert_eq!(step(None, Some(&a)), (Ordering::Greater, Some(Difference::OnlyThere)));
        assert_eq!(step(Some(&a), Some(&entry("b", 1, 1, 0o644))), (Ordering::Less, Some(Difference::OnlyHere)));
        for (other, difference) in [
            (entry("a", 2, 1, 0o644), Difference::Content),
            (entry("a", 1, 2, 0o644), Difference::Content),
            (entry("a", 1, 1, 0o600), Difference::Meta),
            (Entry { meta: Meta { kind: Kind::Fifo, ..a.meta }, ..a.clone() }, Difference::Content),
            (Entry { meta: Meta { uid: 9, ..a.meta }, ..a.clone() }, Difference::Meta),
        ] {
            assert_eq!(step(Some(&a), Some(&other)), (Ordering::Equal, Some(difference)), "{other:?}");
        }
        let deep = |digest| Entry { digest: Some(digest), ..a.clone() };
        assert_eq!(step(Some(&deep([1; 32])), Some(&deep([2; 32]))).1, Some(Difference::Content));
    }
}
