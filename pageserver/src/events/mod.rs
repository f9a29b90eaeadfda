//! What happens to branches, who does it, and a stream of it that nobody has to read.
//!
//! The branch service emits one event for each change, after the change is durable. A reader that
//! is too slow misses the oldest events and is told how many. Nothing waits for a reader.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::broadcast;

/// Events that a slow reader may be behind before it misses some.
const CAPACITY: usize = 1024;

/// Who does something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Actor {
    /// A request that bore the API's token.
    Token,
    /// A client's session through the proxy.
    Session,
    /// The server itself, as at its first start.
    Server,
    /// A job of the server.
    Job(&'static str),
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Token => f.write_str("token"),
            Self::Session => f.write_str("session"),
            Self::Server => f.write_str("server"),
            Self::Job(name) => write!(f, "job:{name}"),
        }
    }
}

/// Declares the actions, with the word for each.
macro_rules! actions {
    ($($(#[$doc:meta])* $action:ident = $word:literal,)+) => {
        /// What is done to a branch.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Action {
            $($(#[$doc])* $action,)+
        }

        impl Action {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$action),+];

            /// The action as one word.
            pub fn word(self) -> &'static str {
                match self {
                    $(Self::$action => $word,)+
                }
            }
        }
    };
}

actions! {
    /// A branch was made from another one.
    Create = "create",
    /// A root branch was filled from a running Postgres, or by the first start.
    Import = "import",
    /// A branch went back to its parent.
    Reset = "reset",
    /// A branch went back to a moment of its own past.
    Restore = "restore",
    /// The name or the settings of a branch changed.
    Update = "update",
    /// A branch was removed.
    Delete = "delete",
    /// The Postgres of a branch was started on request.
    Wake = "wake",
    /// The Postgres of a branch was stopped on request.
    Suspend = "suspend",
}

/// Something that happened to a branch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// When, in nanoseconds since 1970.
    pub time_ns: i64,
    /// Who did it.
    pub actor: Actor,
    /// What was done.
    pub action: Action,
    /// The branch's permanent number.
    pub branch: u64,
    /// Its name before.
    pub name: String,
    /// What else is to be said: the parent, the new name, the branch that keeps the state before.
    pub other_name: Option<String>,
}

/// The stream of events.
pub struct Events {
    sender: broadcast::Sender<Arc<Event>>,
    counts: [AtomicU64; Action::ALL.len()],
}

impl Default for Events {
    fn default() -> Self {
        let counts = std::array::from_fn(|_| AtomicU64::new(0));
        Self { sender: broadcast::Sender::new(CAPACITY), counts }
    }
}

impl Events {
    /// Hands an event to whoever reads the stream.
    pub fn emit(&self, event: Event) {
        self.counts[event.action as usize].fetch_add(1, Ordering::Relaxed);
        // It fails if nobody reads, which nobody has to.
        let _unread = self.sender.send(Arc::new(event));
    }

    /// All events from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<Event>> {
        self.sender.subscribe()
    }

    /// How many events of each action there were since the start.
    pub fn counts(&self) -> impl Iterator<Item = (Action, u64)> {
        let counts = self.counts.iter().map(|count| count.load(Ordering::Relaxed));
        Action::ALL.iter().copied().zip(counts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(nth: u64) -> Event {
        Event {
            time_ns: 1,
            actor: Actor::Job("sweep"),
            action: Action::Delete,
            branch: nth,
            name: "gone".to_owned(),
            other_name: None,
        }
    }

    #[test]
    fn events_are_counted_and_read_in_their_order_by_those_who_ask() {
        let events = Events::default();
        events.emit(event(1));
        let mut reader = events.subscribe();
        (2..=3).for_each(|nth| events.emit(event(nth)));
        assert_eq!(*reader.try_recv().unwrap(), event(2));
        assert_eq!(*reader.try_recv().unwrap(), event(3));
        assert!(reader.try_recv().is_err(), "nothing else happened");
        for (action, count) in events.counts() {
            assert_eq!(count, if action == Action::Delete { 3 } else { 0 }, "{}", action.word());
        }
    }

    #[test]
    fn a_reader_that_does_not_read_keeps_nobody_waiting_and_learns_what_it_missed() {
        let events = Events::default();
        let mut reader = events.subscribe();
        (0..3 * CAPACITY as u64).for_each(|nth| events.emit(event(nth)));
        let missed = broadcast::error::TryRecvError::Lagged(2 * CAPACITY as u64);
        assert_eq!(reader.try_recv().unwrap_err(), missed);
        assert_eq!(reader.try_recv().unwrap().branch, 2 * CAPACITY as u64);
    }
}
