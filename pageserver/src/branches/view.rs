//! What the service says of branches and of the server.

use super::{Branches, labels};
use crate::compute::ComputeState;
use crate::error::Result;
use crate::moment::timestamp;
use crate::storage::catalog::{BranchNetwork, BranchRecord, DEFAULT_BRANCH};
use crate::storage::page::{Position, TimelineId};
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::PathBuf;
use std::sync::Arc;

/// A branch as it is now.
#[derive(Clone, Debug)]
pub struct BranchView {
    /// Its name.
    pub name: String,
    /// Its label.
    pub host: String,
    /// Name of the branch that it was made from; none for a root or when the parent is gone.
    pub parent: Option<String>,
    /// The history that the name points at.
    pub timeline: TimelineId,
    /// Position of the parent that it starts from.
    pub fork_position: Option<Position>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When its data was last taken from the parent.
    pub forked_at: Timestamp,
    /// Whether new branches start from it if they name no parent.
    pub default: bool,
    /// Whether reset and delete are refused.
    pub protected: bool,
    /// The network of its Postgres.
    pub network: BranchNetwork,
    /// Whether the jobs of `pg_cron` run.
    pub scheduled_jobs: bool,
    /// How many seconds of its past are kept.
    pub history_s: u64,
    /// What its Postgres is doing.
    pub state: ComputeState,
    /// Why its Postgres failed.
    pub failure: Option<String>,
    /// Unix socket of its Postgres, while it runs.
    pub socket: Option<PathBuf>,
    /// Client connections through the proxy.
    pub connections: u64,
    /// Bytes of its data directory; none if a killed server left that to be found out.
    pub logical_bytes: Option<u64>,
    /// Bytes on disk of its own timeline.
    pub own_bytes: u64,
    /// Bytes on disk that deleting it would free.
    pub freed_by_delete: u64,
}

/// Which branches to list.
#[derive(Clone, Debug, Default)]
pub struct BranchPage {
    /// What their names begin with.
    pub prefix: String,
    /// The name that the page begins behind.
    pub after: Option<String>,
    /// How many there are on a page; all if none.
    pub limit: Option<usize>,
}

/// The server as a whole.
#[derive(Clone, Debug)]
pub struct ServerView {
    /// Version of Postgres that runs the branches.
    pub postgres_version: String,
    /// Branch that new branches start from.
    pub default_branch: String,
    /// Number of branches.
    pub branches: u64,
    /// Number of branches whose Postgres runs.
    pub running: u64,
    /// Client connections through the proxy.
    pub connections: u64,
    /// Bytes that the store takes on disk.
    pub store_bytes: u64,
    /// Bytes free on the store's file system.
    pub free_bytes: u64,
    /// Address of the proxy, `host:port`.
    pub proxy_address: String,
    /// Certificate of the proxy's own CA, if it has one.
    pub ca_file: Option<PathBuf>,
    /// Seconds since the server started.
    pub uptime_s: u64,
}

impl BranchPage {
    /// The branches of the page, and whether there are more behind them.
    fn of<'b>(
        &self,
        branches: &'b BTreeMap<String, BranchRecord>,
    ) -> (Vec<(&'b String, &'b BranchRecord)>, bool) {
        let after = self.after.as_deref().filter(|after| *after >= self.prefix.as_str());
        let begin = after.map_or(Bound::Included(self.prefix.as_str()), Bound::Excluded);
        let behind = branches.range::<str, _>((begin, Bound::Unbounded));
        let mut matching = behind.take_while(|(name, _)| name.starts_with(&self.prefix));
        let page = matching.by_ref().take(self.limit.unwrap_or(usize::MAX)).collect();
        (page, matching.next().is_some())
    }
}

impl Branches {
    /// A page of the branches, by name; with the name to go on behind if there are more.
    pub async fn list(self: &Arc<Self>, page: BranchPage) -> (Vec<BranchView>, Option<String>) {
        self.blocking(move |this| {
            let (records, more) = this.store.catalog().with_branches(|branches| {
                let (records, more) = page.of(branches);
                let copy =
                    |(name, record): (&String, &BranchRecord)| (name.clone(), record.clone());
                (records.into_iter().map(copy).collect::<Vec<_>>(), more)
            });
            let next = records.last().filter(|_| more).map(|(name, _)| name.clone());
            // A branch that is deleted meanwhile is left out by whoever asks for its timeline.
            let view = |(name, record): &(String, BranchRecord)| this.view(name, record).ok();
            (records.iter().filter_map(view).collect(), next)
        })
        .await
    }

    /// One branch.
    pub async fn show(self: &Arc<Self>, name: &str) -> Result<BranchView> {
        let name = name.to_owned();
        self.blocking(move |this| this.get(&name)).await
    }

    /// One branch, for those who may wait for the disk.
    pub(super) fn get(&self, name: &str) -> Result<BranchView> {
        self.view(name, &self.record(name)?)
    }

    fn view(&self, name: &str, record: &BranchRecord) -> Result<BranchView> {
        let timeline = TimelineId(record.timeline);
        let compute = self.supervisor.state(timeline);
        let ancestor = self.store.catalog().timeline(timeline).and_then(|found| found.ancestor);
        let (own_bytes, logical_bytes) = self.store.sizes(timeline)?;
        let freed = self.store.catalog().freed_by_delete(name);
        let own = |id| self.store.sizes(id).map_or(0, |(own, _)| own);
        Ok(BranchView {
            name: name.to_owned(),
            host: labels::of(name, record),
            parent: record.parent.and_then(|parent| self.directory.name_of(parent)),
            timeline,
            fork_position: ancestor.map(|ancestor| ancestor.at.data),
            created_at: timestamp(record.created_ns),
            forked_at: timestamp(record.forked_ns),
            default: record.id == DEFAULT_BRANCH,
            protected: record.protected,
            network: self.supervisor.network(record.allowance),
            scheduled_jobs: record.allowance.scheduled_jobs,
            history_s: self.store.catalog().history_s(record),
            state: compute.state,
            failure: compute.failure,
            socket: compute.socket,
            connections: compute.leases,
            logical_bytes,
            own_bytes,
            freed_by_delete: freed.into_iter().map(own).sum(),
        })
    }

    /// Whether branches can be made, as far as is known without waiting for anything.
    pub fn health(&self) -> Result<()> {
        self.store.health()
    }

    /// The server as a whole.
    pub async fn server(self: &Arc<Self>) -> Result<ServerView> {
        self.blocking(|this| {
            let (running, connections) = this.supervisor.totals();
            let (free_bytes, _) = this.store.space()?;
            Ok(ServerView {
                postgres_version: this.about.postgres_version.clone(),
                default_branch: this.default_name(),
                branches: this.store.catalog().with_branches(|branches| branches.len() as u64),
                running,
                connections,
                store_bytes: this.store.bytes()?,
                free_bytes,
                proxy_address: this.about.proxy_address.clone(),
                ca_file: this.about.ca_file.clone(),
                uptime_s: this.started.elapsed().as_secs(),
            })
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_together_are_all_names_with_the_prefix_once_each() {
        let names = ["a", "fix/a", "fix/b", "fix/c", "fiy", "z"];
        let record = Branches::first_record(TimelineId(1), None);
        let branches: BTreeMap<String, BranchRecord> =
            names.iter().map(|name| ((*name).to_owned(), record.clone())).collect();
        for (prefix, expected) in [("", &names[..]), ("fix/", &names[1..4]), ("no", &[])] {
            for limit in [None, Some(1), Some(2), Some(3), Some(100)] {
                let (mut found, mut after, mut more) = (Vec::new(), None, true);
                while more {
                    let page = BranchPage { prefix: prefix.to_owned(), after, limit };
                    let (records, goes_on) = page.of(&branches);
                    assert!(limit.is_none_or(|limit| records.len() <= limit));
                    found.extend(records.iter().map(|(name, _)| name.as_str()));
                    (after, more) = (found.last().map(|name| (*name).to_owned()), goes_on);
                }
                assert_eq!(found, expected, "{prefix:?} {limit:?}");
            }
        }
    }

    #[test]
    fn a_page_goes_on_behind_a_branch_that_is_gone() {
        let record = Branches::first_record(TimelineId(1), None);
        let branches = BTreeMap::from([("a".to_owned(), record.clone()), ("c".to_owned(), record)]);
        let page =
            |after: &str| BranchPage { after: Some(after.to_owned()), ..BranchPage::default() };
        let names = |after: &str| -> Vec<String> {
            page(after).of(&branches).0.into_iter().map(|(name, _)| name.clone()).collect()
        };
        assert_eq!((names("b"), names("c")), (vec!["c".to_owned()], vec![]));
    }
}
