//! What of the machine a compute reaches: its network, and its share of memory, processes and
//! processors.

use super::child::Surroundings;
use super::config::ComputeConfig;
use super::groups::{Groups, group_name};
use crate::storage::catalog::{Allowance, BranchNetwork};
use crate::storage::page::TimelineId;
use crate::sys::child::{Network, Preparation, UserMap, prepare};
use nix::sys::signal::Signal;
use std::process::{Command, Stdio};

/// Computes end before the server when memory runs out.
const OOM_SCORE: &str = "500";

/// What this machine offers.
#[derive(Debug)]
pub(crate) struct ComputeSurroundings {
    /// A network without way out; none if it cannot be had.
    isolated: Option<Network>,
    /// None if they cannot be had.
    groups: Option<Groups>,
    network: BranchNetwork,
}

impl ComputeSurroundings {
    /// Finds out what can be had, and says what cannot.
    pub(crate) fn prepare(config: &ComputeConfig) -> Self {
        let isolated = match try_isolation(config) {
            Ok(network) => Some(network),
            Err(error) => {
                tracing::warn!(
                    %error,
                    "branches share the network of this machine and can reach what it reaches: \
                     start the server as root, or allow user namespaces"
                );
                None
            }
        };
        let groups = Groups::prepare(&group_name(&config.run_dir), config.limits);
        let groups = groups.inspect_err(|error| {
            tracing::warn!(
                %error,
                "one branch can take all memory and processors of this machine: start the server \
                 as root, or delegate a control group to it"
            );
        });
        Self { isolated, groups: groups.ok(), network: config.network }
    }

    /// The network that a compute with this allowance gets.
    pub(crate) fn network_of(&self, allowance: Allowance) -> BranchNetwork {
        match &self.isolated {
            Some(_) => allowance.network.unwrap_or(self.network),
            None => BranchNetwork::Host,
        }
    }

    /// The surroundings of a compute that is about to start.
    pub(crate) fn of(&self, allowance: Allowance) -> Surroundings {
        let isolated = self.isolated.as_ref();
        let isolated = isolated.filter(|_| self.network_of(allowance) == BranchNetwork::None);
        let network = isolated.cloned().unwrap_or(Network::Shared);
        Surroundings { network, oom_score: Some(OOM_SCORE), users: None }
    }

    /// Puts a postmaster that has just started into a control group of its own, with all that it
    /// starts from then on. The kernel takes some 20 ms for that, which Postgres needs for its own
    /// start too.
    pub(crate) fn enclose(&self, timeline: TimelineId, pid: i32) {
        let Some(groups) = &self.groups else { return };
        if let Err(error) = groups.make(timeline, pid) {
            tracing::warn!(%timeline, %error, "the branch has no limits");
        }
    }

    /// Ends what a compute has left running, and removes its group.
    pub(crate) fn end(&self, timeline: TimelineId) {
        self.groups.iter().for_each(|groups| groups.end(timeline));
    }
}

/// Runs a program that ends at once in a network of its own.
fn try_isolation(config: &ComputeConfig) -> std::io::Result<Network> {
    let network = if nix::unistd::geteuid().is_root() {
        Network::Own
    } else {
        Network::OwnOfUser(UserMap::of_this_process())
    };
    let mut command = Command::new(config.installation.program("postgres"));
    command.arg("-V").env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let preparation = Preparation {
        oom_score: None,
        network: network.clone(),
        users: None,
        identity: None,
        death: Signal::SIGKILL,
    };
    prepare(&mut command, preparation);
    command.status().map(|_| network)
}
