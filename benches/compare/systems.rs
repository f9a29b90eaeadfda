//! What is compared: one Postgres each, on a file system that branches it or does not.

use coppice::sides::Side;

/// The database that is branched.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Base {
    /// Scale of pgbench.
    pub(crate) scale: u64,
    /// How full pgbench makes the pages of its tables, in percent.
    pub(crate) fillfactor: u64,
    /// Whether our server is to seal at once what is not written to, instead of after its default
    /// time.
    pub(crate) seal_at_once: bool,
}

/// One of those that are compared. It has a base that rests, and a branch of it under load, which
/// is the base itself where nothing can be branched.
pub(crate) trait System {
    /// What it is called in the results.
    fn name(&self) -> &'static str;

    /// The branch under load, which runs.
    fn side(&self) -> Side;

    /// Stops the branch under load, calls `between`, and starts it again.
    fn restart(&mut self, between: &mut dyn FnMut());

    /// Waits until nothing of it works in the background.
    fn settle(&mut self) {}

    /// Whether it can make branches.
    fn branches(&self) -> bool {
        true
    }

    /// Makes a branch of the base; how long that took, in milliseconds.
    fn create(&mut self, branch: &str) -> f64;

    /// Removes a branch.
    fn remove(&mut self, branch: &str);

    /// Makes a branch and asks it for a row; milliseconds. The branch is stopped then.
    fn first_row(&mut self, branch: &str) -> f64;

    /// Starts a branch that is stopped, the one under load where there are no others, and asks it
    /// for a row; milliseconds. It is as it was then.
    fn wake(&mut self, branch: &str) -> f64;

    /// Starts a branch, does something with it, and stops it.
    fn visit(&mut self, branch: &str, work: &mut dyn FnMut(&Side));

    /// The branch under load through a proxy of its own, if it has one: over a Unix socket and over
    /// TCP.
    fn proxied(&self) -> Option<[Side; 2]> {
        None
    }

    /// Bytes taken on disk. Nothing of it may run but what [`System::visit`] stopped.
    fn used_bytes(&mut self) -> u64;
}

/// Makes a base in a running Postgres.
pub(crate) fn load(side: &Side, base: Base) {
    side.pgbench(&["-i", "-q", "-s", &base.scale.to_string(), "-F", &base.fillfactor.to_string()]);
    side.sql("vacuum analyze");
    side.sql("checkpoint");
    // So that no branch is the first to need a new segment, whatever the base wrote.
    side.sql("select pg_switch_wal()");
    side.sql("checkpoint");
}

/// What a machine cannot, and why.
pub(crate) type Skipped = Vec<(String, String)>;
