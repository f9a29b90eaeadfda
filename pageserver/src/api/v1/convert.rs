//! Between the bodies of the API and the types of the services.

use ::api::durations::{format_duration, parse_duration};
use ::api::types;

use crate::branches::{
    BranchBytes, BranchView, DiskUsage, NamelessBytes, NewBranch, NewSettings, RestoreTo,
    ServerView,
};
use crate::compute::ComputeState;
use crate::error::{Error, Result};
use crate::import::{Import, ImportState, NewImport};
use crate::moment::{History, HistoryRange, Moment};
use crate::storage::catalog::BranchNetwork;

impl From<types::Moment> for Moment {
    fn from(moment: types::Moment) -> Self {
        match moment {
            types::Moment::Time(time) => Self::Time(time),
            types::Moment::Position(position) => Self::Position(position),
            types::Moment::Lsn(text) => Self::Lsn(text),
        }
    }
}

/// How long a past is to be kept, in seconds.
fn history_s(history: Option<&str>) -> Result<Option<u64>> {
    let bad = |why| Error::invalid("bad_history", format!("`history`: {why}"));
    history.map(|text| parse_duration(text).map_err(bad)).transpose()
}

impl TryFrom<types::CreateBranch> for NewBranch {
    type Error = Error;

    fn try_from(body: types::CreateBranch) -> Result<Self> {
        let types::CreateBranch { name, parent, at, history } = body;
        let history_s = history_s(history.as_deref())?;
        Ok(Self { name, parent, at: at.map(Into::into), history_s })
    }
}

impl From<types::RestoreBranch> for RestoreTo {
    fn from(types::RestoreBranch { at, keep_as }: types::RestoreBranch) -> Self {
        Self { at: at.into(), keep_as }
    }
}

impl TryFrom<types::UpdateBranch> for NewSettings {
    type Error = Error;

    fn try_from(body: types::UpdateBranch) -> Result<Self> {
        let types::UpdateBranch { name, protected, network, scheduled_jobs, history } = body;
        let history_s = history_s(history.as_deref())?;
        let network = network.map(|choice| match choice {
            types::NetworkChoice::None => Some(BranchNetwork::None),
            types::NetworkChoice::Host => Some(BranchNetwork::Host),
            types::NetworkChoice::Default => None,
        });
        Ok(Self { name, protected, network, scheduled_jobs, history_s })
    }
}

impl From<BranchNetwork> for types::Network {
    fn from(network: BranchNetwork) -> Self {
        match network {
            BranchNetwork::None => Self::None,
            BranchNetwork::Host => Self::Host,
        }
    }
}

impl From<types::CreateImport> for NewImport {
    fn from(body: types::CreateImport) -> Self {
        let types::CreateImport { name, source, mode: types::ImportMode::Physical } = body;
        Self { name, source: source.into() }
    }
}

impl From<ComputeState> for types::ComputeState {
    fn from(state: ComputeState) -> Self {
        match state {
            ComputeState::Suspended => Self::Suspended,
            ComputeState::Starting => Self::Starting,
            ComputeState::Running => Self::Running,
            ComputeState::Stopping => Self::Stopping,
            ComputeState::Failed => Self::Failed,
        }
    }
}

impl From<BranchView> for types::Branch {
    fn from(view: BranchView) -> Self {
        Self {
            name: view.name,
            host: view.host,
            parent: view.parent,
            timeline: view.timeline.to_string(),
            fork_position: view.fork_position,
            created_at: view.created_at,
            forked_at: view.forked_at,
            default: view.default,
            protected: view.protected,
            network: view.network.into(),
            scheduled_jobs: view.scheduled_jobs,
            history: Some(format_duration(view.history_s)),
            state: view.state.into(),
            failure: view.failure,
            socket: view.socket.map(|path| path.display().to_string()),
            connections: view.connections,
            logical_bytes: view.logical_bytes,
            own_bytes: view.own_bytes,
            freed_by_delete: view.freed_by_delete,
        }
    }
}

impl From<History> for types::History {
    fn from(History { ranges, window_s }: History) -> Self {
        Self { ranges: ranges.into_iter().map(Into::into).collect(), window_s }
    }
}

impl From<HistoryRange> for types::HistoryRange {
    fn from(range: HistoryRange) -> Self {
        Self {
            from: range.from,
            to: range.to,
            from_position: range.from_position,
            to_position: range.to_position,
            from_lsn: range.from_lsn.map(|lsn| lsn.to_string()),
            to_lsn: range.to_lsn.map(|lsn| lsn.to_string()),
            points: range.points,
        }
    }
}

impl From<ImportState> for types::ImportState {
    fn from(state: ImportState) -> Self {
        match state {
            ImportState::Running => Self::Running,
            ImportState::Done => Self::Done,
            ImportState::Failed => Self::Failed,
        }
    }
}

impl From<Import> for types::Import {
    fn from(import: Import) -> Self {
        Self {
            id: import.id,
            name: import.name,
            state: import.state.into(),
            step: import.step,
            bytes_done: import.bytes_done,
            bytes_total: import.bytes_total,
            notes: import.notes,
            error: import.error,
        }
    }
}

impl From<ServerView> for types::Status {
    fn from(view: ServerView) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            postgres_version: view.postgres_version,
            default_branch: view.default_branch,
            branches: view.branches,
            running: view.running,
            connections: view.connections,
            store_bytes: view.store_bytes,
            free_bytes: view.free_bytes,
            proxy_address: view.proxy_address,
            ca_file: view.ca_file.map(|path| path.to_string_lossy().into_owned()),
            uptime_s: view.uptime_s,
        }
    }
}

impl From<DiskUsage> for types::Usage {
    fn from(usage: DiskUsage) -> Self {
        let branch = |of: BranchBytes| types::BranchUsage {
            name: of.name,
            logical_bytes: of.logical_bytes,
            own_bytes: of.own_bytes,
            freed_by_delete: of.freed_by_delete,
        };
        let nameless = |of: NamelessBytes| types::NamelessUsage {
            timeline: of.timeline.to_string(),
            own_bytes: of.own_bytes,
            needed_by: of.needed_by,
        };
        Self {
            branches: usage.branches.into_iter().map(branch).collect(),
            nameless: usage.nameless.into_iter().map(nameless).collect(),
            reserve_bytes: usage.reserve_bytes,
            total_bytes: usage.total_bytes,
        }
    }
}
