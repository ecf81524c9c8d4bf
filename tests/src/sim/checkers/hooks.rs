//! Discontinue has ended before a release is said; every start runs it before connecting; every change of role has its
//! hook (protocol §7, §9).

use ringpair_core::{config::OnHookFailure, effect::Hook};
use ringpair_wire::id::Epoch;

use super::{super::member::name, Verdict, rule};

/// A member's service, as its hooks leave it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Service {
    /// The newest office.
    epoch: Epoch,
    /// Commence has been begun in it, and discontinue has not ended since.
    commenced: bool,
    /// Discontinue has been begun, and has not ended since.
    discontinuing: bool,
    /// How the newest discontinue ended.
    discontinued_ok: bool,
    /// Commence has ended well in the newest office.
    ready: bool,
    /// Serves as active.
    active: bool,
}

/// Both services.
#[derive(Debug, Default)]
pub struct Hooks {
    services: [Service; 2],
}

impl Hooks {
    /// A hook is begun.
    ///
    /// # Errors
    /// If a service is commenced by a member in an epoch that is not its newest office.
    pub fn runs(&mut self, m: usize, hook: Hook, epoch: Epoch) -> Verdict {
        let service = &mut self.services[m];
        service.discontinuing |= hook == Hook::Discontinue;
        if hook == Hook::Commence {
            service.commenced = true;
            return rule("hooks", epoch == service.epoch, || {
                format!("{} runs commence for epoch {epoch} in epoch {}", name(m), service.epoch)
            });
        }
        Ok(())
    }

    /// A hook has ended.
    pub fn ended(&mut self, m: usize, hook: Hook, epoch: Epoch, ok: bool) {
        let service = &mut self.services[m];
        match hook {
            Hook::Commence => service.ready |= ok && epoch == service.epoch,
            Hook::Discontinue => {
                (service.commenced, service.discontinuing, service.discontinued_ok) = (false, false, ok);
                service.ready = false;
            }
        }
    }

    /// An office begins.
    pub fn begins(&mut self, m: usize, epoch: Epoch) {
        self.services[m].epoch = epoch;
        self.services[m].ready = false;
    }

    /// A release is said.
    ///
    /// # Errors
    /// If the service may still run.
    pub fn released(&mut self, m: usize, epoch: Epoch, policy: OnHookFailure) -> Verdict {
        let service = &self.services[m];
        let _ = policy;
        rule("hooks", !service.commenced, || format!("{} releases epoch {epoch} before discontinue has ended", name(m)))
    }

    /// A worker opens its doors.
    ///
    /// # Errors
    /// If discontinue has not ended since it started.
    pub fn connects(&mut self, m: usize, discontinued: bool) -> Verdict {
        rule("hooks", discontinued, || format!("{} connects before the start's discontinue has ended", name(m)))
    }

    /// A member shows whether it is active.
    ///
    /// # Errors
    /// If it is not, and its service goes on without a word.
    pub fn observed(&mut self, m: usize, active: bool, epoch: Epoch) -> Verdict {
        let service = &mut self.services[m];
        service.active = active;
        if active {
            service.epoch = epoch;
        }
        rule("hooks", active || !service.commenced || service.discontinuing, || {
            format!("{} is not active any more, and its service is not discontinued", name(m))
        })
    }

    /// The end: the active's service runs, the backup's does not.
    ///
    /// # Errors
    /// If a hook is missing.
    pub fn at_the_end(&self, active: usize) -> Verdict {
        let (on, off) = (&self.services[active], &self.services[1 - active]);
        rule("hooks", on.ready && on.commenced, || {
            format!("{} is active and commence has not ended well", name(active))
        })?;
        rule("hooks", !off.commenced, || format!("{} is backup and its service was not discontinued", name(1 - active)))
    }
}
