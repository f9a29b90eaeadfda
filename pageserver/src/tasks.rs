//! Work away from the threads that serve connections.
//!
//! The server is built with `panic = "abort"`: a panic is a broken invariant and ends the process,
//! and Postgres with it; the next start recovers what was acknowledged. So nobody turns a panic
//! into an error. In a test, whose build unwinds, a panic goes on to whoever waits for the work.

use tokio::task::JoinError;

/// Runs `work`, which may wait for the disk or for a lock, on a thread for such work.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    joined(tokio::task::spawn_blocking(work).await).await
}

/// Runs a future as a task of its own: it goes on when whoever waits for it goes away.
pub async fn detached<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> T {
    joined(tokio::spawn(work).await).await
}

async fn joined<T>(outcome: Result<T, JoinError>) -> T {
    match outcome {
        Ok(done) => done,
        // The runtime ends, and whoever waits ends with it.
        Err(error) if error.is_cancelled() => std::future::pending().await,
        Err(error) => panic!("a task panicked: {error}"),
    }
}
