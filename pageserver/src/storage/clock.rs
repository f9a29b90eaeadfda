//! What time it is: the machine's, unless a test sets it.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime};

/// A clock, in nanoseconds since 1970.
#[derive(Debug, Default)]
pub struct Clock {
    /// 0 means that of the machine.
    set_ns: AtomicI64,
}

impl Clock {
    /// The time.
    pub fn now_ns(&self) -> i64 {
        match self.set_ns.load(Ordering::SeqCst) {
            0 => machine_ns(),
            set => set,
        }
    }

    /// Stops the clock at this time.
    pub fn set(&self, ns: i64) {
        self.set_ns.store(ns, Ordering::SeqCst);
    }
}

/// The machine's time, in nanoseconds since 1970.
pub fn machine_ns() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// A duration in whole milliseconds, for logs.
pub fn whole_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
