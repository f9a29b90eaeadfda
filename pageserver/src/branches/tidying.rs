//! Work behind the answers, counted so that the end of the server can wait for it.

use tokio::sync::watch;

/// How much of it is under way.
pub(super) struct Tidying(watch::Sender<usize>);

impl Default for Tidying {
    fn default() -> Self {
        Self(watch::Sender::new(0))
    }
}

/// A piece of it, which ends when it is dropped.
pub(super) struct Chore(watch::Sender<usize>);

impl Tidying {
    /// Begins a piece.
    pub(super) fn begin(&self) -> Chore {
        self.0.send_modify(|count| *count += 1);
        Chore(self.0.clone())
    }

    /// Waits until none is under way.
    pub(super) async fn done(&self) {
        let mut count = self.0.subscribe();
        // The sender is ours, so the wait cannot fail.
        let _none = count.wait_for(|count| *count == 0).await;
    }
}

impl Drop for Chore {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}
