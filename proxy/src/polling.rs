//! Waiting for events. A thread polls before it sleeps, while events come soon and no other thread
//! wants the CPU.

use std::thread;
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollEvent, EpollTimeout};

/// How long a thread polls before it sleeps, while events keep coming that soon. Postgres answers
/// many requests in less, and to fall asleep and be woken takes as long again.
const POLL: Duration = Duration::from_micros(100);
/// Yielding the CPU takes longer than this when other threads compute on it. Postgres and its
/// clients soon wait again.
const CROWDED: Duration = Duration::from_micros(500);
/// For how long a thread then sleeps without polling. The scheduler runs a thread that wakes before
/// threads that compute, and a thread that yields after them.
const PAUSE: Duration = Duration::from_millis(200);

/// When a thread polls before it sleeps, and for how long.
pub(crate) struct Polling {
    /// How long the next poll lasts.
    length: Duration,
    /// No poll before this time, as other threads want the CPU.
    not_before: Instant,
}

impl Polling {
    pub(crate) fn new() -> Self {
        Self { length: Duration::ZERO, not_before: Instant::now() }
    }

    /// Waits for events. Yields the CPU to other threads between two polls.
    pub(crate) fn wait(&mut self, epoll: &Epoll, events: &mut [EpollEvent]) -> nix::Result<usize> {
        let (began, mut count) = (Instant::now(), 0);
        if began >= self.not_before {
            while count == 0 && began.elapsed() < self.length {
                count = epoll.wait(events, EpollTimeout::ZERO)?;
                if count == 0 {
                    thread::yield_now();
                }
            }
            if began.elapsed() > CROWDED {
                self.not_before = Instant::now() + PAUSE;
            }
        }
        if count == 0 {
            count = epoll.wait(events, EpollTimeout::NONE)?;
        }
        self.length = next_poll(self.length, began.elapsed());
        Ok(count)
    }
}

/// After an event that came soon the thread polls the next time too. After a late event it polls
/// for half as long.
fn next_poll(length: Duration, waited: Duration) -> Duration {
    if waited < POLL { POLL } else { length / 2 }
}

#[cfg(test)]
mod tests {
    use nix::sys::epoll::{EpollCreateFlags, EpollFlags};
    use nix::sys::eventfd::EventFd;

    use super::*;

    /// Time that this thread has had a CPU.
    fn busy() -> Duration {
        let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
        Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
    }

    /// How often this thread went to sleep.
    fn sleeps() -> u64 {
        let text = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let line =
            text.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).unwrap();
        line.trim().parse().unwrap()
    }

    const LATE: Duration = Duration::from_millis(300);

    /// Waits for an event that comes late. Returns the CPU time that this took, and how often the
    /// thread slept.
    fn wait_for_late_event(polling: &mut Polling) -> (Duration, u64) {
        let (epoll, event) =
            (Epoll::new(EpollCreateFlags::empty()).unwrap(), EventFd::new().unwrap());
        epoll.add(&event, EpollEvent::new(EpollFlags::EPOLLIN, 1)).unwrap();
        thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(LATE);
                event.write(1).unwrap();
            });
            let (slept, began) = (sleeps(), busy());
            assert_eq!(polling.wait(&epoll, &mut [EpollEvent::empty()]), Ok(1));
            (busy() - began, sleeps() - slept)
        })
    }

    #[test]
    fn a_thread_looks_for_an_event_and_then_sleeps() {
        let mut polling = Polling { length: POLL, ..Polling::new() };
        let (busy, slept) = wait_for_late_event(&mut polling);
        assert!(
            busy < LATE / 10 && slept > 0,
            "{busy:?} were spent looking for what came after {LATE:?}"
        );
        assert_eq!(polling.length, POLL / 2);
        let before = Instant::now();
        polling = Polling { length: LATE * 100, not_before: before };
        assert_eq!(wait_for_late_event(&mut polling).1, 0, "it was looked for all the time");
        assert!(polling.not_before > before + LATE, "that took long");
        polling = Polling { length: LATE * 100, not_before: before + LATE * 100 };
        assert!(
            wait_for_late_event(&mut polling).1 > 0,
            "it is not looked for while others want the processor"
        );
    }

    #[test]
    fn what_comes_late_is_looked_for_less_and_less() {
        let (soon, late) = (POLL / 2, POLL * 2);
        assert_eq!(next_poll(Duration::ZERO, soon), POLL);
        assert_eq!(next_poll(POLL / 8, soon), POLL);
        assert_eq!(next_poll(POLL, late), POLL / 2);
        let end = (0..20).fold(POLL, |poll, _| next_poll(poll, late));
        assert_eq!(end, Duration::ZERO);
    }
}
