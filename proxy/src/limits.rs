//! The limits of the proxy.

use std::time::Duration;

/// Every limit of the proxy. `Default` gives what both binaries use.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Sessions at the same time. The proxy refuses one more with `53300`.
    pub sessions: usize,
    /// Connections that have not started a session yet, at the same time. Counted apart
    /// from `sessions`, so that a client can cancel a query while all sessions are in use.
    pub greetings: usize,
    /// Connections beyond these that are told so within TLS, at the same time. One more is told
    /// without TLS, which many clients do not understand.
    pub refusals: usize,
    /// Time from accept to a complete startup packet, TLS handshake included. Half of Postgres's
    /// own `authentication_timeout`, which covers what comes after.
    pub startup: Duration,
    /// The same for a connection that is refused in any case, before it is told so.
    pub refusal: Duration,
    /// Time for waking the branch and connecting to it; long enough for a crash recovery.
    pub wake: Duration,
    /// Time that sessions get to end by themselves at a shutdown.
    pub grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            sessions: 1000,
            greetings: 1000,
            refusals: 1000,
            startup: Duration::from_secs(30),
            refusal: Duration::from_secs(5),
            wake: Duration::from_secs(300),
            grace: Duration::from_secs(3),
        }
    }
}
