//! What a request to the HTTP API carries: see [`pageserver::api::property`] for what must hold.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pageserver::api::property::request(bytes));
