//! Work away from the threads that serve connections.
//!
//! The server is built with `panic = "abort"`: a panic is a broken invariant and ends the process,
//! and Postgres with it; the next start recovers what was acknowledged. So nobody turns a panic
//! into an error. In a test, whose build unwinds, a panic goes on to whoever waits for the work.

/// Runs `work`, which may wait for the disk or for a lock, on a thread for such work.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    joined(tokio::task::spawn_blocking(work).await)
}

/// Runs a future as a task of its own: it goes on when whoever waits for it goes away.
pub async fn detached<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> T {
    joined(tokio::spawn(work).await)
}

fn joined<T>(outcome: Result<T, tokio::task::JoinError>) -> T {
    outcome.unwrap_or_else(|error| panic!("a task ended before its work was done: {error}"))
}
