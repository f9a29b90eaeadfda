//! The first packet of a connection to the proxy: see [`proxy::property`] for what must hold.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| proxy::property::startup_packet(bytes));
