//! The configuration as the core sees it.

use std::time::Duration;

use ringpair_core::config::{Config as CoreConfig, FailSafeStart, OnHookFailure, OnPeerLoss};

use super::RunOptions;
use crate::config::{self, Config, timing};

/// Translates; what the core has and the file has not keeps the core's default.
#[must_use]
pub fn core_config(config: &Config, options: RunOptions) -> CoreConfig {
    let explicit = crate::ds::params::Parameters::from_pairs(config.parameters.iter().cloned());
    let timing = timing(&config.detection, |number| {
        let id = crate::ds::params::ParamId(number);
        explicit.is_explicit(id).then(|| explicit.number(id)).flatten()
    });
    let defaults = CoreConfig::fast(config.member);
    let heartbeat = timing.heartbeat;
    CoreConfig {
        member: config.member,
        name: config.own().name.clone(),
        peer_name: config.peer().name.clone(),
        peer_address: config.peer().address.to_string(),
        release: config.release.clone(),
        heartbeat,
        misses: timing.misses,
        reconnect: timing.reconnect_timeout,
        leased: timing.lease.is_some(),
        fail_safe_start: match config.detection.fail_safe_start {
            config::FailSafeStart::IfCurrent => FailSafeStart::IfCurrent,
            config::FailSafeStart::Always => FailSafeStart::Always,
            config::FailSafeStart::Never => FailSafeStart::Never,
        },
        on_peer_loss: match config.ack.on_peer_loss {
            config::OnPeerLoss::Continue => OnPeerLoss::Continue,
            config::OnPeerLoss::Block => OnPeerLoss::Block,
        },
        on_hook_failure: match config.hooks.on_failure {
            config::OnHookFailure::Promote => OnHookFailure::Promote,
            config::OnHookFailure::Hold => OnHookFailure::Hold,
        },
        force_backup: options.force_backup,
        bootstrap: options.bootstrap,
        manual_only: options.manual_switch_only,
        start_wait: heartbeat * timing.misses,
        switch_step: config.hooks.timeout + Duration::from_secs(20),
        journal_max_bytes: config.storage.journal_max_bytes,
        ..defaults
    }
}
