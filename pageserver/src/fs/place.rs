//! Where a thread of a ring may run. To hand a request over on one processor is a switch of tasks; to hand it to another
//! one that sleeps wakes that up first, which in a virtual machine can take longer than the request. So a thread stays on
//! the processor that its requests come from, unless there is work for more than one: requests that come from several,
//! or a long one, beside which whoever reads ahead goes on.

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Requests of a mount in a row from one processor, after which no other one is taken to have any.
const IN_A_ROW: u32 = 8;
/// A request with so many bytes is a long one: copied, and perhaps unpacked, in tens of microseconds.
const LONG_BYTES: usize = 64 << 10;
/// The calling thread.
const THIS: Pid = Pid::from_raw(0);

/// From which processor the last requests of a mount came, and above it how many in a row.
#[derive(Default)]
pub(super) struct Origins(AtomicU32);

impl Origins {
    /// How many came from there in a row, this one included. Two at once may count as one: it is a guess what comes next.
    fn note(&self, processor: u16) -> u32 {
        const ONE: u32 = 1 << 16;
        let before = self.0.load(Ordering::Relaxed);
        let same = before % ONE == u32::from(processor);
        let after = if same { before.checked_add(ONE).unwrap_or(before) } else { ONE + u32::from(processor) };
        self.0.store(after, Ordering::Relaxed);
        after / ONE
    }
}

/// Where the thread that has it may run.
pub(super) struct Place {
    processor: u16,
    origins: Arc<Origins>,
    /// Where it could run before it was bound to its processor.
    elsewhere: Option<CpuSet>,
}

impl Place {
    pub(super) fn new(processor: u16, origins: Arc<Origins>) -> Self {
        Self { processor, origins, elsewhere: None }
    }

    /// Chooses where the thread waits for its next request, after one of so many bytes.
    pub(super) fn choose(&mut self, bytes: usize) {
        let stay = self.origins.note(self.processor) >= IN_A_ROW && bytes < LONG_BYTES;
        match self.elsewhere {
            None if stay => self.elsewhere = bind(self.processor),
            Some(elsewhere) if !stay => {
                // It fails if none of these processors is there any more, and then the kernel has chosen others.
                let _ = sched_setaffinity(THIS, &elsewhere);
                self.elsewhere = None;
            }
            _ => {}
        }
    }
}

/// Binds the thread to a processor if it may run there; where it could run before.
fn bind(processor: u16) -> Option<CpuSet> {
    let before = sched_getaffinity(THIS).ok()?;
    let mut one = CpuSet::new();
    one.set(usize::from(processor)).ok()?;
    if !before.is_set(usize::from(processor)).ok()? {
        return None;
    }
    sched_setaffinity(THIS, &one).ok().map(|()| before)
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

    #[test]
    fn a_thread_stays_where_all_requests_come_from() {
        on_a_thread(|all| {
            let (first, last) = (all[0], *all.last().unwrap());
            let origins = Arc::new(Origins::default());
            let mut place = Place::new(last, origins.clone());
            for _ in 1..IN_A_ROW {
                place.choose(100);
                assert_eq!(may_run(), all);
            }
            place.choose(100);
            assert_eq!(may_run(), [last]);
            place.choose(100);
            assert_eq!(may_run(), [last]);
            if first != last {
                // One that another thread has, from another processor.
                origins.note(first);
                place.choose(100);
                assert_eq!(may_run(), all);
            }
        });
    }

    #[test]
    fn a_thread_is_free_after_a_long_request() {
        on_a_thread(|all| {
            let mut place = Place::new(all[0], Arc::default());
            for _ in 0..IN_A_ROW {
                place.choose(LONG_BYTES - 1);
            }
            assert_eq!(may_run(), all[..1]);
            place.choose(LONG_BYTES);
            assert_eq!(may_run(), all);
            place.choose(0);
            assert_eq!(may_run(), all[..1]);
        });
    }

    #[test]
    fn a_thread_does_not_go_where_it_may_not_run() {
        on_a_thread(|all| {
            let (first, last) = (all[0], *all.last().unwrap());
            let mut only = CpuSet::new();
            only.set(usize::from(first)).unwrap();
            sched_setaffinity(THIS, &only).unwrap();
            for elsewhere in [last, 1023, 1024] {
                let mut place = Place::new(elsewhere, Arc::default());
                for _ in 0..2 * IN_A_ROW {
                    place.choose(0);
                }
                assert_eq!(may_run(), [first]);
            }
        });
    }

    #[test]
    fn many_in_a_row_stay_many() {
        let origins = Origins(AtomicU32::new(u32::MAX << 17 | 3));
        assert_eq!([3, 3, 3, 7].map(|processor| origins.note(processor)), [65535, 65535, 65535, 1]);
    }
}
