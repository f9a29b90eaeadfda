//! The branch service as the proxy sees it: selectors onto branches and sockets, errors onto
//! SQLSTATEs.

use crate::branches::Branches;
use crate::error::{Error, Kind};
use crate::moment::Moment;
use proxy::{Backends, Refusal, Selector, Target, Upstream, refusal};
use std::sync::Arc;

/// Finds and wakes branches for the proxy in the same process.
pub struct Gateway(pub Arc<Branches>);

impl Backends for Gateway {
    async fn find(&self, selectors: Vec<Selector>) -> Result<Vec<Option<String>>, Refusal> {
        let means = |selector: &Selector| match selector {
            Selector::Label(label) => self.0.name_of_label(label),
            Selector::Name(name) => self.0.name_meant(name),
        };
        Ok(selectors.iter().map(means).collect())
    }

    async fn acquire(&self, target: &Target) -> Result<Upstream, Refusal> {
        let name = target.branch.clone();
        let lease = match &target.at {
            None => self.0.acquire(&name).await,
            Some(text) => {
                let bad = |detail| refuse(&name, target, Error::invalid("invalid_moment", detail));
                let moment = text.parse::<api::types::Moment>().map_err(bad)?;
                self.0.visit(&name, &Moment::from(moment)).await
            }
        };
        let lease = lease.map_err(|error| refuse(&name, target, error))?;
        let (socket, owner) = (lease.socket().to_path_buf(), lease.owner());
        let (parting, revoked) = (lease.parting(), lease.revoked());
        Ok(Upstream::new(name, socket, lease).of(owner).until(parting, revoked))
    }

    fn admits(&self, uid: u32) -> bool {
        !self.0.is_compute_user(uid)
    }
}

/// Errors whose detail quotes Postgres's log. It is not for clients that gave no password yet.
const QUOTING: [&str; 2] = ["compute_failed", "compute_slow"];

fn refuse(name: &str, target: &Target, error: Error) -> Refusal {
    if QUOTING.contains(&error.code) {
        let (at, hint) = match &target.at {
            None => {
                let hint = format!("`branchctl show {name}` or `branchctl logs {name}` tells why");
                (String::new(), hint)
            }
            Some(at) => (format!(" at {at}"), "the server's log tells why".to_owned()),
        };
        let message = format!("branch \"{name}\"{at} cannot start");
        return Refusal::new(refusal::CANNOT_CONNECT_NOW, message).with_hint(hint);
    }
    if error.code == "branch_not_found" {
        // It was there when the client named it. The detail has names of other branches.
        return Refusal::new(refusal::NO_SUCH_BRANCH, "the branch does not exist");
    }
    let sqlstate = match error.kind {
        Kind::NotFound => refusal::NO_SUCH_BRANCH,
        Kind::Invalid => refusal::INVALID_PARAMETER,
        _ => refusal::CANNOT_CONNECT_NOW,
    };
    match error.detail.split_once("; ") {
        // Of other kinds the detail may be several sentences, which stay together.
        Some((message, hint)) if error.kind == Kind::NotFound => {
            Refusal::new(sqlstate, message).with_hint(hint)
        }
        _ => Refusal::new(sqlstate, error.detail),
    }
}
