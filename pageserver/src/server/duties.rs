//! What the server does by itself.

use super::wiring::Running;
use crate::compute::debt::DEBT_TICK;
use crate::config::{Config, DETACH_AFTER, TICK, VISITS_TICK};
use crate::error::Result;
use crate::jobs::{Again, Priority};
use crate::storage::upkeep::{Duty, Limits, Maintenance};
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;

/// Starts all jobs.
pub(super) fn start(running: &Running, config: &Config) -> Result<()> {
    let limits = Limits {
        max_log_bytes: config.log_limit << 20,
        quiet: Duration::from_secs(config.seal_after),
        max_history_bytes: config.history_limit << 20,
    };
    let jobs = &running.jobs;
    let store = Arc::clone(&running.store);
    jobs.every("tick", TICK, Priority::Normal, move |_| {
        store.tick();
        Ok(Again::Later)
    })?;
    let store = Arc::clone(&running.store);
    jobs.every("measure", TICK, Priority::Normal, move |_| store.measure().map(|()| Again::Later))?;
    let store = Arc::clone(&running.store);
    let mut sealing = Maintenance::new(limits, Duty::Seal);
    jobs.every("seal", TICK, Priority::Low, move |stop| sealing.pass(&store, stop).map(again))?;
    let (store, mount) = (Arc::clone(&running.store), Arc::clone(&running.mount));
    let mut tidying = Maintenance::new(limits, Duty::Tidy);
    jobs.every("tidy", TICK, Priority::Low, move |stop| {
        let more = tidying.pass(&store, stop);
        mount.release_idle(DETACH_AFTER);
        store.close_unused();
        more.map(again)
    })?;
    let (branches, runtime) = (Arc::clone(&running.branches), Handle::current());
    jobs.every("checkpoints", DEBT_TICK, Priority::Normal, move |_| {
        let _runtime = runtime.enter();
        branches.bound_debts();
        Ok(Again::Later)
    })?;
    let (branches, runtime) = (Arc::clone(&running.branches), Handle::current());
    jobs.every("visits", VISITS_TICK, Priority::Normal, move |_| {
        runtime.block_on(branches.end_visits()).map(|()| Again::Later)
    })
}

fn again(more: bool) -> Again {
    if more { Again::Now } else { Again::Later }
}
