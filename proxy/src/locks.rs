//! Taking a lock. The proxy takes a poisoned one like any other: no code of the proxy leaves the
//! value behind a lock half changed.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks a mutex.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
