//! The seam between the proxy and a server: the proxy asks for a branch, and the server wakes its
//! Postgres.

use std::future::pending;
use std::path::PathBuf;
use std::pin::Pin;

use crate::mentions::Selector;
use crate::refusal::Refusal;
use crate::route::Target;

/// Where a branch's Postgres is.
pub struct Upstream {
    /// Name of the branch, for the log.
    pub branch: String,
    /// Unix socket of its Postgres.
    pub socket: PathBuf,
    /// The user who must be the one that listens there, if that is known: the branch may have put
    /// something else in its place.
    pub owner: Option<u32>,
    /// Keeps the branch awake until dropped, which is when the session ends.
    pub lease: Box<dyn Send + Sync>,
    /// Ready when the session is to end if it rests.
    pub parting: Pin<Box<dyn Future<Output = ()> + Send>>,
    /// Ready when the session must end at once: nothing of its Postgres may reach the client any
    /// more.
    pub revoked: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Upstream {
    /// A Postgres whose sessions end by themselves.
    pub fn new(branch: String, socket: PathBuf, lease: impl Send + Sync + 'static) -> Self {
        let (parting, revoked) = (Box::pin(pending()), Box::pin(pending()));
        Self { branch, socket, owner: None, lease: Box::new(lease), parting, revoked }
    }

    /// The same, if this user listens.
    pub fn of(self, owner: u32) -> Self {
        Self { owner: Some(owner), ..self }
    }

    /// The same, until `parting` is ready, if the session rests then, or `revoked` is.
    pub fn until(
        self,
        parting: impl Future<Output = ()> + Send + 'static,
        revoked: impl Future<Output = ()> + Send + 'static,
    ) -> Self {
        Self { parting: Box::pin(parting), revoked: Box::pin(revoked), ..self }
    }
}

/// Finds branches and wakes them.
pub trait Backends: Send + Sync + 'static {
    /// The names of the branches that are meant, one for each selector; none where there is none.
    fn find(
        &self,
        selectors: Vec<Selector>,
    ) -> impl Future<Output = Result<Vec<Option<String>>, Refusal>> + Send;

    /// Wakes the branch, or the moment of its past, if need be, and returns once its Postgres
    /// accepts connections.
    ///
    /// The proxy drops the future when the client goes away first, so that no branch stays awake
    /// without a client.
    fn acquire(&self, target: &Target) -> impl Future<Output = Result<Upstream, Refusal>> + Send;

    /// Whether an operating-system user may connect through the Unix socket, which all users can
    /// reach.
    fn admits(&self, _uid: u32) -> bool {
        true
    }
}
