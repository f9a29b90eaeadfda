//! On which CPU a thread that serves a ring runs.
//!
//! Handing a request over on one CPU is a switch of tasks. If a thread on another CPU takes the
//! request, and that CPU sleeps, the kernel has to wake the CPU first. In a virtual machine that
//! can take longer than the request. So a thread stays on the CPU that its requests come from. The
//! thread is free while there is work for more than one CPU: when requests come from several, or
//! when a request is long, beside which a reader that reads ahead goes on.

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// After so many requests of a mount in a row from one CPU, no other CPU is taken to send any.
const IN_A_ROW: u32 = 8;
/// A request with so many bytes is long: copying and perhaps unpacking them takes tens of
/// microseconds.
const LONG_BYTES: usize = 64 << 10;
/// The calling thread.
const THIS: Pid = Pid::from_raw(0);

/// The CPU that the last requests of a mount came from, and in the upper half how many came from it
/// in a row. The count only guesses where the next request comes from, so of two requests at once
/// one may go uncounted.
#[derive(Default)]
pub(super) struct RequestCpus(AtomicU32);

impl RequestCpus {
    const ONE: u32 = 1 << 16;

    fn note(&self, number: u16) {
        let before = self.0.load(Ordering::Relaxed);
        let after = if before % Self::ONE == u32::from(number) {
            before.checked_add(Self::ONE).unwrap_or(before)
        } else {
            Self::ONE + u32::from(number)
        };
        self.0.store(after, Ordering::Relaxed);
    }

    /// Starts counting anew.
    fn forget(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    /// How many of the last requests came from this CPU in a row.
    fn in_a_row(&self, number: u16) -> u32 {
        let last = self.0.load(Ordering::Relaxed);
        if last % Self::ONE == u32::from(number) { last / Self::ONE } else { 0 }
    }
}

/// Where the kernel may run a thread.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Binding {
    /// The thread runs wherever the process may.
    Free,
    /// The thread runs on its CPU only.
    Bound,
    /// The kernel refuses this CPU to the thread, which stays free for ever.
    Refused,
}

/// The CPU of the thread that owns this value. A thread that a bound thread starts is bound too, so
/// the threads of a ring start none.
pub(super) struct Cpu {
    number: u16,
    cpus: Arc<RequestCpus>,
    binding: Binding,
}

impl Cpu {
    pub(super) fn new(number: u16, cpus: Arc<RequestCpus>) -> Self {
        Self { number, cpus, binding: Binding::Free }
    }

    /// Notes that a request came.
    pub(super) fn begin(&self) {
        self.cpus.note(self.number);
    }

    /// Notes that the request had so many bytes. Returns whether the thread is where it should wait
    /// for the next request.
    pub(super) fn end(&self, bytes: usize) -> bool {
        if bytes >= LONG_BYTES {
            self.cpus.forget();
        }
        let should_be_bound = self.cpus.in_a_row(self.number) >= IN_A_ROW;
        match self.binding {
            Binding::Free => !should_be_bound,
            Binding::Bound => should_be_bound,
            Binding::Refused => true,
        }
    }

    /// Binds the thread, or frees it.
    pub(super) fn change(&mut self) {
        self.binding = match self.binding {
            Binding::Free if bind(self.number) => Binding::Bound,
            Binding::Free => Binding::Refused,
            Binding::Bound if free() => Binding::Free,
            same => same,
        };
    }
}

/// Binds the thread to a CPU, if the thread may run there.
fn bind(number: u16) -> bool {
    let mut one = CpuSet::new();
    let may = sched_getaffinity(THIS).and_then(|now| now.is_set(usize::from(number)));
    may == Ok(true)
        && one.set(usize::from(number)).and_then(|()| sched_setaffinity(THIS, &one)).is_ok()
}

/// Lets the thread run wherever the process may. The first thread of the process is never bound, so
/// its affinity is that of the process.
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

    /// Runs on a thread of its own, with the CPUs that the thread may use.
    fn on_a_thread(test: impl FnOnce(Vec<u16>) + Send + 'static) {
        std::thread::spawn(move || test(may_run())).join().unwrap();
    }

    fn end(cpu: &mut Cpu, bytes: usize) {
        if !cpu.end(bytes) {
            cpu.change();
            assert!(cpu.end(0));
        }
    }

    fn serve(cpu: &mut Cpu, bytes: usize) {
        cpu.begin();
        end(cpu, bytes);
    }

    #[test]
    fn a_thread_stays_where_all_requests_come_from() {
        on_a_thread(|all| {
            let last = *all.last().unwrap();
            let cpus = Arc::new(RequestCpus::default());
            let mut cpu = Cpu::new(last, cpus.clone());
            for _ in 1..IN_A_ROW {
                serve(&mut cpu, 100);
                assert!(cpu.binding == Binding::Free && may_run() == all);
            }
            for _ in 0..2 {
                serve(&mut cpu, 100);
                assert!(cpu.binding == Binding::Bound && may_run() == [last]);
            }
            // One that another thread has, from another CPU.
            cpus.note(last + 1);
            serve(&mut cpu, 100);
            assert!(cpu.binding == Binding::Free && may_run() == all);
        });
    }

    #[test]
    fn one_from_another_cpu_counts_while_it_is_served() {
        on_a_thread(|all| {
            let cpus = Arc::new(RequestCpus::default());
            let mut cpu = Cpu::new(all[0], cpus.clone());
            let other = Cpu::new(all[0] + 1, cpus);
            for _ in 0..IN_A_ROW {
                cpu.begin();
                other.begin();
                end(&mut cpu, 0);
                assert!(cpu.binding == Binding::Free && may_run() == all);
            }
        });
    }

    #[test]
    fn a_thread_is_free_after_a_long_request() {
        on_a_thread(|all| {
            let mut cpu = Cpu::new(all[0], Arc::default());
            for _ in 0..2 {
                for _ in 0..IN_A_ROW {
                    assert!(cpu.binding == Binding::Free && may_run() == all);
                    serve(&mut cpu, LONG_BYTES - 1);
                }
                assert!(cpu.binding == Binding::Bound && may_run() == all[..1]);
                serve(&mut cpu, LONG_BYTES);
            }
            assert!(cpu.binding == Binding::Free && may_run() == all);
        });
    }

    #[test]
    fn a_thread_does_not_go_where_it_may_not_run() {
        on_a_thread(|all| {
            let (first, last) = (all[0], *all.last().unwrap());
            let mut only = CpuSet::new();
            only.set(usize::from(first)).unwrap();
            sched_setaffinity(THIS, &only).unwrap();
            for number in [last, 1023, 1024] {
                let mut cpu = Cpu::new(number, Arc::default());
                for _ in 0..2 * IN_A_ROW {
                    serve(&mut cpu, 0);
                }
                assert_eq!(may_run(), [first]);
                assert_eq!(
                    cpu.binding,
                    if number == first { Binding::Bound } else { Binding::Refused }
                );
            }
        });
    }

    #[test]
    fn many_in_a_row_stay_many() {
        let cpus = RequestCpus(AtomicU32::new(65534 << 16 | 3));
        let counts = [3, 3, 3, 7].map(|number| {
            cpus.note(number);
            cpus.in_a_row(number)
        });
        assert_eq!(counts, [65535, 65535, 65535, 1]);
        assert_eq!(cpus.in_a_row(3), 0);
    }
}
