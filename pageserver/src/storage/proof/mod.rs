//! What must hold for any bytes that a disk gives back, for fuzzing and random tests. The
//! invariants are in the files of the properties' names.

mod bits;
mod catalog;
mod layer;
mod record;

pub use catalog::catalog;
pub use layer::layer;
pub use record::record;
