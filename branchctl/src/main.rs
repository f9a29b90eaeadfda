//! branchctl
fn main() {}
