//! The page server's command.

fn main() {}
