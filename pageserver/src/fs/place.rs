//! Where a thread that serves a ring may run. To hand a request over on one processor is a switch
//! of tasks; if another one has to take it and sleeps, that must be woken first, which in a virtual
//! machine can take longer than the request. So a thread stays on the processor that its requests
//! come from, unless there is work for more than one: requests that come from several, or a long
//! one, beside which whoever reads ahead goes on.

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Requests of a mount in a row from one processor, after which no other one is taken to have any.
const IN_A_ROW: u32 = 8;
/// A request with so many bytes is a long one: copied, and perhaps unpacked, in tens of
/// microseconds.
const LONG_BYTES: usize = 64 << 10;
/// The calling thread.
const THIS: Pid = Pid::from_raw(0);

/// From which processor the last requests of a mount came, and in the upper half how many in a row.
/// It is a guess what comes next, so one of two at once may be lost.
#[derive(Default)]
pub(super) struct Origins(AtomicU32);

impl Origins {
    const ONE: u32 = 1 << 16;

    fn note(&self, processor: u16) {
        let before = self.0.load(Ordering::Relaxed);
        let after = if before % Self::ONE == u32::from(processor) {
            before.checked_add(Self::ONE).unwrap_or(before)
        } else {
            Self::ONE + u32::from(processor)
        };
        self.0.store(after, Ordering::Relaxed);
    }

    /// Lets what came in a row count no more.
    fn forget(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    /// How many of the last ones came from there.
    fn in_a_row(&self, processor: u16) -> u32 {
        let last = self.0.load(Ordering::Relaxed);
        if last % Self::ONE == u32::from(processor) { last / Self::ONE } else { 0 }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    /// It runs wherever the process may.
    Free,
    Bound,
    /// It may not run on its processor, and is always free.
    Refused,
}

/// Where the thread that has it may run. A thread that it made would be bound as it is itself;
/// these make none.
pub(super) struct Place {
    processor: u16,
    origins: Arc<Origins>,
    state: State,
}

impl Place {
    pub(super) fn new(processor: u16, origins: Arc<Origins>) -> Self {
        Self { processor, origins, state: State::Free }
    }

    /// Notes that a request came.
    pub(super) fn begin(&self) {
        self.origins.note(self.processor);
    }

    /// Notes that it had so many bytes. Whether the thread is where it should wait for the next
    /// one.
    pub(super) fn end(&self, bytes: usize) -> bool {
        if bytes >= LONG_BYTES {
            self.origins.forget();
        }
        let should_be_bound = self.origins.in_a_row(self.processor) >= IN_A_ROW;
        match self.state {
            State::Free => !should_be_bound,
            State::Bound => should_be_bound,
            State::Refused => true,
        }
    }

    /// Lets the thread go where it should be.
    pub(super) fn change(&mut self) {
        self.state = match self.state {
            State::Free if bind(self.processor) => State::Bound,
            State::Free => State::Refused,
            State::Bound if free() => State::Free,
            same => same,
        };
    }
}

/// Binds the thread to a processor, if it may run there.
fn bind(processor: u16) -> bool {
    let mut one = CpuSet::new();
    let may = sched_getaffinity(THIS).and_then(|now| now.is_set(usize::from(processor)));
    may == Ok(true)
        && one.set(usize::from(processor)).and_then(|()| sched_setaffinity(THIS, &one)).is_ok()
}

/// Lets the thread run wherever the process may, which its first thread shows, as that is never
/// bound.
fn free() -> bool {
    sched_getaffinity(Pid::this()).and_then(|all| sched_setaffinity(THIS, &all)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn may_run() -> Vec<u16> {
        let set = sched_getaffinity(THIS).unwrap();
        (0..1024).filter(|nth| set.is_set(usize::from(*nth)).unwrap()).collect()
    }

    /// Runs on a thread of its own, with the processors that it may use.
    fn on_a_thread(test: impl FnOnce(Vec<u16>) + Send + 'static) {
        std::thread::spawn(move || test(may_run())).join().unwrap();
    }

    fn end(place: &mut Place, bytes: usize) {
        if !place.end(bytes) {
            place.change();
            assert!(place.end(0));
        }
    }

    fn serve(place: &mut Place, bytes: usize) {
        place.begin();
        end(place, bytes);
    }

    #[test]
    fn a_thread_stays_where_all_requests_come_from() {
        on_a_thread(|all| {
            let last = *all.last().unwrap();
            let origins = Arc::new(Origins::default());
            let mut place = Place::new(last, origins.clone());
            for _ in 1..IN_A_ROW {
                serve(&mut place, 100);
                assert!(place.state == State::Free && may_run() == all);
            }
            for _ in 0..2 {
                serve(&mut place, 100);
                assert!(place.state == State::Bound && may_run() == [last]);
            }
            // One that another thread has, from another processor.
            origins.note(last + 1);
            serve(&mut place, 100);
            assert!(place.state == State::Free && may_run() == all);
        });
    }

    #[test]
    fn one_from_another_processor_counts_while_it_is_served() {
        on_a_thread(|all| {
            let origins = Arc::new(Origins::default());
            let mut place = Place::new(all[0], origins.clone());
            let other = Place::new(all[0] + 1, origins);
            for _ in 0..IN_A_ROW {
                place.begin();
                other.begin();
                end(&mut place, 0);
                assert!(place.state == State::Free && may_run() == all);
            }
        });
    }

    #[test]
    fn a_thread_is_free_after_a_long_request() {
        on_a_thread(|all| {
            let mut place = Place::new(all[0], Arc::default());
            for _ in 0..2 {
                for _ in 0..IN_A_ROW {
                    assert!(place.state == State::Free && may_run() == all);
                    serve(&mut place, LONG_BYTES - 1);
                }
                assert!(place.state == State::Bound && may_run() == all[..1]);
                serve(&mut place, LONG_BYTES);
            }
            assert!(place.state == State::Free && may_run() == all);
        });
    }

    #[test]
    fn a_thread_does_not_go_where_it_may_not_run() {
        on_a_thread(|all| {
            let (first, last) = (all[0], *all.last().unwrap());
            let mut only = CpuSet::new();
            only.set(usize::from(first)).unwrap();
            sched_setaffinity(THIS, &only).unwrap();
            for processor in [last, 1023, 1024] {
                let mut place = Place::new(processor, Arc::default());
                for _ in 0..2 * IN_A_ROW {
                    serve(&mut place, 0);
                }
                assert_eq!(may_run(), [first]);
                assert_eq!(
                    place.state,
                    if processor == first { State::Bound } else { State::Refused }
                );
            }
        });
    }

    #[test]
    fn many_in_a_row_stay_many() {
        let origins = Origins(AtomicU32::new(65534 << 16 | 3));
        let counts = [3, 3, 3, 7].map(|processor| {
            origins.note(processor);
            origins.in_a_row(processor)
        });
        assert_eq!(counts, [65535, 65535, 65535, 1]);
        assert_eq!(origins.in_a_row(3), 0);
    }
}
