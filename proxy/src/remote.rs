//! Branches behind the HTTP API, for the stand-alone proxy.
//!
//! The API has no lease, so an open session keeps its branch awake by waking it again and again. A
//! branch has one beat, however many sessions it has. Calls block, and run on tokio's threads for
//! blocking work.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use api::client::{Client, Error};
use proxy::locks::lock;
use proxy::refusal::{CANNOT_CONNECT_NOW, FEATURE_NOT_SUPPORTED, NO_SUCH_BRANCH};
use proxy::{Backends, Refusal, Selector, Target, Upstream};
use tokio::task::{JoinHandle, spawn_blocking};

/// Time between two beats; the server's `--suspend-after` has to be longer.
pub(crate) const BEAT: Duration = Duration::from_secs(10);
/// The API's code for a branch that does not exist.
const BRANCH_NOT_FOUND: &str = "branch_not_found";

/// The branches of the server that `client` talks to.
pub(crate) struct Remote {
    client: Arc<Client>,
    /// Time between two beats.
    interval: Duration,
    /// The beats of branches that have sessions.
    beats: Mutex<HashMap<String, Weak<Beat>>>,
}

/// Keeps one branch awake until dropped.
struct Beat(JoinHandle<()>);

impl Remote {
    pub(crate) fn new(client: Client, interval: Duration) -> Self {
        Self { client: Arc::new(client), interval, beats: Mutex::default() }
    }

    /// Calls the API on a thread that may block.
    async fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Client) -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, Refusal> {
        let client = Arc::clone(&self.client);
        spawn_blocking(move || work(&client)).await.unwrap_or_else(|error| {
            tracing::error!(%error, "a call of the API failed in its own code");
            Err(no_answer())
        })
    }

    /// The beat of a branch, started if there is none.
    fn beat(&self, branch: &str) -> Arc<Beat> {
        let mut beats = lock(&self.beats);
        if let Some(beat) = beats.get(branch).and_then(Weak::upgrade) {
            return beat;
        }
        beats.retain(|_, beat| beat.strong_count() > 0);
        let work = keep_awake(Arc::clone(&self.client), branch.to_owned(), self.interval);
        let beat = Arc::new(Beat(tokio::spawn(work)));
        beats.insert(branch.to_owned(), Arc::downgrade(&beat));
        beat
    }
}

impl Drop for Beat {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Backends for Remote {
    async fn find(&self, selectors: Vec<Selector>) -> Result<Vec<Option<String>>, Refusal> {
        self.call(move |client| selectors.iter().map(|selector| find(client, selector)).collect())
            .await
    }

    async fn acquire(&self, target: &Target) -> Result<Upstream, Refusal> {
        if target.at.is_some() {
            let text = "this proxy cannot reach moments of the past";
            let hint = "Connect through the server's own proxy, or make a branch of the moment.";
            return Err(Refusal::new(FEATURE_NOT_SUPPORTED, text).with_hint(hint));
        }
        let name = target.branch.clone();
        let branch = self.call(move |client| client.wake(&name).map_err(|e| refusal(&e))).await?;
        let Some(socket) = branch.socket else {
            let text = format!("branch \"{}\" was woken but has no socket", branch.name);
            return Err(Refusal::new(CANNOT_CONNECT_NOW, text).with_hint("Connect again later."));
        };
        let beat = self.beat(&branch.name);
        Ok(Upstream::new(branch.name, socket.into(), beat))
    }
}

async fn keep_awake(client: Arc<Client>, branch: String, interval: Duration) {
    loop {
        tokio::time::sleep(interval).await;
        let (client, name) = (Arc::clone(&client), branch.clone());
        let woken = spawn_blocking(move || client.wake(&name)).await;
        match woken {
            Ok(Ok(_)) => tracing::trace!(branch, "kept awake"),
            Ok(Err(error)) => tracing::warn!(branch, %error, "cannot keep a branch awake"),
            Err(error) => {
                tracing::error!(branch, %error, "a call of the API failed in its own code")
            }
        }
    }
}

/// The name of the branch that `selector` means. The API knows branches by name and by label.
fn find(client: &Client, selector: &Selector) -> Result<Option<String>, Refusal> {
    let (Selector::Name(text) | Selector::Label(text)) = selector;
    let branch = match client.get(text) {
        Err(error) if error.status == 404 => return Ok(None),
        branch => branch.map_err(|error| refusal(&error))?,
    };
    match selector {
        // A name that is the label of another branch.
        Selector::Label(label) if branch.host != *label => {
            let branches = client.list().map_err(|error| refusal(&error))?;
            let found = branches.into_iter().find(|branch| branch.host == *label);
            Ok(found.map(|branch| branch.name))
        }
        _ => Ok(Some(branch.name)),
    }
}

/// What a client may learn of a failed call. Wrong settings of the proxy itself go to the log only.
fn refusal(error: &Error) -> Refusal {
    match (error.status, error.code.as_str()) {
        // The detail has names of other branches, and of the next two Postgres's log.
        (_, BRANCH_NOT_FOUND) => Refusal::new(NO_SUCH_BRANCH, "the branch does not exist")
            .with_hint("`branchctl list` shows the branches that exist."),
        (_, "compute_failed" | "compute_slow") => {
            Refusal::new(CANNOT_CONNECT_NOW, "the branch cannot start")
                .with_hint("`branchctl show BRANCH` or `branchctl logs BRANCH` tells why.")
        }
        (0 | 401, _) => {
            tracing::error!(%error, "cannot use the server's API");
            no_answer()
        }
        _ => Refusal::new(CANNOT_CONNECT_NOW, &error.detail),
    }
}

fn no_answer() -> Refusal {
    Refusal::new(CANNOT_CONNECT_NOW, "the proxy cannot use the API of its server")
        .with_hint("Connect again later; the proxy's log says what is wrong.")
}

#[cfg(test)]
#[path = "remote_tests.rs"]
mod tests;
