//! What the server does by itself, again and again: one scheduler for all of it.
//!
//! Each job has a thread of its own, so one that takes long keeps no other waiting. A job runs at
//! the start, and again when its period has passed since the end of the run before. The last
//! outcome of each job is in `/metrics`. The clock is handed in: a test sets the time.
//!
//! [`Jobs::stop`] is the one way in which they end: all are told, then waited for, the newest
//! first.

use crate::error::{Error, Result};
use crate::locks::lock;
use crate::storage::clock::{machine_ns, whole_ms};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What time it is for jobs, since an arbitrary beginning.
pub trait JobClock: Send + Sync + 'static {
    /// The time now. It never goes back.
    fn now(&self) -> Duration;
}

impl JobClock for Instant {
    fn now(&self) -> Duration {
        self.elapsed()
    }
}

/// When a job is to run again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Again {
    /// At once: there is more to do.
    Now,
    /// After its period.
    Later,
}

/// How important a job's thread is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Priority {
    /// As everything else.
    Normal,
    /// Behind everything else.
    Low,
}

/// How a job has done so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JobOutcome {
    /// Runs that have ended.
    pub runs: u64,
    /// Those that failed.
    pub failures: u64,
    /// Why the last run failed; none if it did not.
    pub error: Option<String>,
    /// When the last run ended, in nanoseconds since 1970.
    pub ended_ns: i64,
    /// How long the last run took.
    pub duration_ms: u64,
}

/// The jobs of a server.
pub struct Jobs {
    shared: Arc<Schedule>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

struct Schedule {
    clock: Box<dyn JobClock>,
    stop: AtomicBool,
    /// Held while a job decides to wait, so that none misses that it is to look again.
    gate: Mutex<()>,
    look: Condvar,
    outcomes: Mutex<BTreeMap<&'static str, JobOutcome>>,
}

impl Jobs {
    /// No jobs yet.
    pub fn new(clock: impl JobClock) -> Arc<Self> {
        let shared = Schedule {
            clock: Box::new(clock),
            stop: AtomicBool::new(false),
            gate: Mutex::new(()),
            look: Condvar::new(),
            outcomes: Mutex::default(),
        };
        Arc::new(Self { shared: Arc::new(shared), threads: Mutex::default() })
    }

    /// Runs `work` now and then each time that `period` has passed. It is handed the flag that
    /// tells it to stop in the middle.
    ///
    /// # Panics
    /// If there is a job of this name.
    pub fn every(
        &self,
        name: &'static str,
        period: Duration,
        priority: Priority,
        work: impl FnMut(&AtomicBool) -> Result<Again> + Send + 'static,
    ) -> Result<()> {
        let known = lock(&self.shared.outcomes).insert(name, JobOutcome::default());
        assert!(known.is_none(), "there are two jobs \"{name}\"");
        let shared = Arc::clone(&self.shared);
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            if priority == Priority::Low
                && let Err(error) = crate::sys::lower_priority()
            {
                tracing::warn!(job = name, %error, "a job runs at the priority of everything else");
            }
            shared.repeat(name, period, work);
        });
        lock(&self.threads).push(thread.map_err(|e| Error::io("start a thread", &e))?);
        Ok(())
    }

    /// Has all jobs look at the clock.
    pub fn look(&self) {
        drop(lock(&self.shared.gate));
        self.shared.look.notify_all();
    }

    /// How each job has done so far.
    pub fn outcomes(&self) -> Vec<(&'static str, JobOutcome)> {
        lock(&self.shared.outcomes).iter().map(|(name, of)| (*name, of.clone())).collect()
    }

    /// Tells all jobs to stop, and waits until they have.
    pub fn stop(&self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.look();
        let threads = std::mem::take(&mut *lock(&self.threads));
        for thread in threads.into_iter().rev() {
            // A job that panicked has ended the server, but for tests, which see it on stderr.
            let _ended = thread.join();
        }
    }
}

impl Schedule {
    fn is_stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn repeat(
        &self,
        name: &'static str,
        period: Duration,
        mut work: impl FnMut(&AtomicBool) -> Result<Again>,
    ) {
        while !self.is_stopping() {
            let began = Instant::now();
            let outcome = work(&self.stop);
            let again = *outcome.as_ref().unwrap_or(&Again::Later);
            self.note(name, began, outcome.err());
            if again == Again::Later {
                self.wait_until(self.clock.now() + period);
            }
        }
    }

    fn note(&self, name: &'static str, began: Instant, error: Option<Error>) {
        let mut outcomes = lock(&self.outcomes);
        let outcome = outcomes.entry(name).or_default();
        let error = error.map(|error| error.to_string());
        if let Some(error) = error.as_ref().filter(|error| outcome.error.as_ref() != Some(*error)) {
            tracing::error!(job = name, error, "a job failed; it runs again after its period");
        }
        outcome.runs += 1;
        outcome.failures += u64::from(error.is_some());
        outcome.error = error;
        outcome.ended_ns = machine_ns();
        outcome.duration_ms = whole_ms(began.elapsed());
    }

    fn wait_until(&self, due: Duration) {
        let mut gate = lock(&self.gate);
        while !self.is_stopping() {
            let Some(left) = due.checked_sub(self.clock.now()).filter(|left| !left.is_zero())
            else {
                return;
            };
            let woken = self.look.wait_timeout(gate, left);
            gate = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, channel};

    const HOUR: Duration = Duration::from_secs(3600);
    /// Only a hang takes so long.
    const LIMIT: Duration = Duration::from_secs(120);

    /// A clock that stands still until it is set.
    #[derive(Clone, Default)]
    struct Manual(Arc<Mutex<Duration>>);

    impl JobClock for Manual {
        fn now(&self) -> Duration {
            *lock(&self.0)
        }
    }

    /// A job that reports each run and answers as it is told.
    fn start(
        jobs: &Jobs,
        name: &'static str,
        mut answer: impl FnMut(u64) -> Result<Again> + Send + 'static,
    ) -> Receiver<u64> {
        let (ran, runs) = channel();
        let mut count = 0;
        let work = move |_: &AtomicBool| {
            count += 1;
            let answer = answer(count);
            ran.send(count).unwrap();
            answer
        };
        jobs.every(name, HOUR, Priority::Normal, work).unwrap();
        runs
    }

    fn runs_of(jobs: &Jobs, name: &str, expected: u64) -> JobOutcome {
        let began = Instant::now();
        loop {
            let outcomes = jobs.outcomes();
            let outcome = outcomes.iter().find(|(known, _)| *known == name).unwrap().1.clone();
            if outcome.runs == expected {
                return outcome;
            }
            assert!(began.elapsed() < LIMIT, "{outcome:?}");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_job_runs_at_once_and_then_when_its_period_has_passed() {
        let clock = Manual::default();
        let jobs = Jobs::new(clock.clone());
        let runs = start(&jobs, "hourly", |_| Ok(Again::Later));
        for nth in 1..=5 {
            assert_eq!(runs.recv_timeout(LIMIT), Ok(nth));
            runs_of(&jobs, "hourly", nth);
            // A moment before its time nothing happens, however often it looks.
            *lock(&clock.0) += HOUR - Duration::from_nanos(1);
            (0..10).for_each(|_| jobs.look());
            assert_eq!(runs_of(&jobs, "hourly", nth).failures, 0);
            *lock(&clock.0) += Duration::from_nanos(1);
            jobs.look();
        }
        assert_eq!(runs.recv_timeout(LIMIT), Ok(6));
        jobs.stop();
    }

    #[test]
    fn a_job_with_more_to_do_goes_on_without_waiting() {
        let jobs = Jobs::new(Manual::default());
        let more = |nth| Ok(if nth < 100 { Again::Now } else { Again::Later });
        let runs = start(&jobs, "busy", more);
        assert_eq!(runs.iter().take(100).last(), Some(100));
        assert_eq!(runs_of(&jobs, "busy", 100).failures, 0);
        jobs.stop();
        assert!(runs.try_recv().is_err());
    }

    #[test]
    fn the_last_outcome_is_known_and_a_failure_is_not_the_end() {
        let clock = Manual::default();
        let jobs = Jobs::new(clock.clone());
        let fails = |nth| match nth {
            2 => Err(Error::unavailable("x", "the disk is away")),
            _ => Ok(Again::Later),
        };
        let runs = start(&jobs, "unsteady", fails);
        for (nth, failures, error) in [(1, 0, None), (2, 1, Some("the disk is away")), (3, 1, None)]
        {
            assert_eq!(runs.recv_timeout(LIMIT), Ok(nth));
            let outcome = runs_of(&jobs, "unsteady", nth);
            assert_eq!((outcome.failures, outcome.error.as_deref()), (failures, error));
            assert!(outcome.ended_ns > 0);
            *lock(&clock.0) += HOUR;
            jobs.look();
        }
        jobs.stop();
    }

    #[test]
    fn stopping_wakes_those_that_wait_and_interrupts_those_that_work() {
        let jobs = Jobs::new(Manual::default());
        let waiting = start(&jobs, "waiting", |_| Ok(Again::Later));
        waiting.recv_timeout(LIMIT).unwrap();
        let (begun, working) = channel();
        let work = move |stop: &AtomicBool| {
            begun.send(()).unwrap();
            while !stop.load(Ordering::Relaxed) {
                std::thread::yield_now();
            }
            Ok(Again::Now)
        };
        jobs.every("working", HOUR, Priority::Low, work).unwrap();
        working.recv_timeout(LIMIT).unwrap();
        jobs.stop();
        assert_eq!(jobs.outcomes().iter().map(|(_, outcome)| outcome.runs).sum::<u64>(), 2);
    }

    #[test]
    #[should_panic(expected = "there are two jobs \"one\"")]
    fn a_name_is_of_one_job() {
        let jobs = Jobs::new(Manual::default());
        let _first = start(&jobs, "one", |_| Ok(Again::Later));
        let _second = start(&jobs, "one", |_| Ok(Again::Later));
    }
}
