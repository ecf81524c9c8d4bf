//! Who may use the API: over the Unix socket root, the member's own user, and the configured group (OPS-016, OPS-019);
//! over TCP whoever has the token.
//!
//! Always holds: the peer's credentials come from the kernel, never from the request. A token is compared in a time
//! that does not depend on where it differs.

use std::ffi::CString;

use axum::http::{HeaderMap, header};
use nix::unistd::{Gid, Group, Uid, User, getgrouplist};

/// The rule for the Unix socket.
#[derive(Clone, Debug)]
pub struct SocketRule {
    group: Option<Gid>,
    own: Uid,
}

/// The configured group is not known on this host.
#[derive(Debug, thiserror::Error)]
#[error("api.group = {0:?}: no such group on this host. Try: groupadd --system {0}")]
pub struct NoSuchGroup(pub String);

impl SocketRule {
    /// The rule for members of `group`, beside root and this process's own user.
    ///
    /// # Errors
    /// [`NoSuchGroup`].
    pub fn new(group: Option<&str>) -> Result<Self, NoSuchGroup> {
        let group = match group {
            None => None,
            Some(name) => match Group::from_name(name) {
                Ok(Some(group)) => Some(group.gid),
                _ => return Err(NoSuchGroup(name.to_owned())),
            },
        };
        Ok(Self { group, own: Uid::effective() })
    }

    /// The group, for the socket's owner and mode.
    #[must_use]
    pub fn group(&self) -> Option<Gid> {
        self.group
    }

    /// Whether a process of user `uid` and primary group `gid` may use the API.
    #[must_use]
    pub fn permits(&self, uid: u32, gid: u32) -> bool {
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        if uid.is_root() || uid == self.own {
            return true;
        }
        let Some(group) = self.group else { return false };
        gid == group || supplementary(uid, gid).contains(&group)
    }
}

/// The groups of a user by the host's group database; none where it does not know the user.
fn supplementary(uid: Uid, gid: Gid) -> Vec<Gid> {
    let user = User::from_uid(uid).ok().flatten();
    user.and_then(|user| CString::new(user.name).ok())
        .and_then(|name| getgrouplist(&name, gid).ok())
        .unwrap_or_default()
}

/// The token that TCP callers must show. Never printed.
#[derive(Clone)]
pub struct Token(blake3::Hash);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token")
    }
}

impl Token {
    /// The token `text`.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self(blake3::hash(text.as_bytes()))
    }

    /// Whether `headers` show the token. Digests are compared, in constant time.
    #[must_use]
    pub fn permits(&self, headers: &HeaderMap) -> bool {
        let mut values = headers.get_all(header::AUTHORIZATION).iter();
        let (Some(value), None) = (values.next(), values.next()) else { return false };
        let Some((scheme, token)) = value.as_bytes().split_at_checked(7) else { return false };
        scheme.eq_ignore_ascii_case(b"Bearer ") && blake3::hash(token.trim_ascii()) == self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, value.parse().expect("a header"));
        headers
    }

    #[test]
    fn only_the_exact_token_passes() {
        let token = Token::new("0123456789abcdef");
        assert!(token.permits(&headers("Bearer 0123456789abcdef")));
        assert!(token.permits(&headers("bearer 0123456789abcdef")));
        for wrong in ["Bearer 0123456789abcdeg", "Bearer ", "Basic 0123456789abcdef", "Bearer", "0123456789abcdef", ""]
        {
            assert!(!token.permits(&headers(wrong)), "{wrong:?}");
        }
        assert!(!token.permits(&HeaderMap::new()));
        let mut twice = headers("Bearer 0123456789abcdef");
        twice.append(header::AUTHORIZATION, "Bearer x".parse().expect("a header"));
        assert!(!token.permits(&twice));
        assert!(!format!("{token:?}").contains("0123"));
    }

    // REQ: OPS-016, OPS-019
    #[test]
    fn root_own_user_and_group_may() {
        let nobody = 65_534;
        let rule = SocketRule::new(None).expect("no group");
        assert!(rule.permits(0, 0));
        assert!(rule.permits(Uid::effective().as_raw(), 12_345));
        assert!(!rule.permits(nobody, nobody));
        let rule = SocketRule::new(Some("root")).expect("root exists");
        assert!(rule.permits(nobody, 0), "primary group");
        assert!(!rule.permits(nobody, nobody));
        assert!(SocketRule::new(Some("no-such-group-here")).is_err());
    }
}
