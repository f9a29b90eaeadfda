//! A lane file's header and a record: see [`pageserver::storage::proof`] for what must hold.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pageserver::storage::proof::record(bytes));
