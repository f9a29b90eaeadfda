//! The page store.

pub mod page;
