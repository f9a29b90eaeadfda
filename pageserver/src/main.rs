//! pageserver
fn main() {}
