//! Values of the catalog, one on each line: see [`pageserver::storage::proof`] for what must
//! hold.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pageserver::storage::proof::catalog(bytes));
