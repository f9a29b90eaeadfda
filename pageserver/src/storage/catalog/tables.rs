//! The tables of the catalog's database, and what an error of the database means.

use crate::error::{Error, Kind};
use redb::TableDefinition;

/// The catalog's file.
pub(in crate::storage) const CATALOG_FILE: &str = "catalog";

/// The table of numbers: formats, counters and the store's own number.
pub(super) const NUMBERS: TableDefinition<'_, &str, u64> = TableDefinition::new("numbers");

/// The table of a kind of record: JSON by key.
pub(super) fn table(name: &str) -> TableDefinition<'_, &str, &[u8]> {
    TableDefinition::new(name)
}

/// An error of the database, met while `doing` something to the catalog.
pub(super) fn failed(doing: &str, error: impl Into<redb::Error>) -> Error {
    match error.into() {
        redb::Error::Io(error) => Error::io(format!("{doing} the catalog"), &error),
        redb::Error::Corrupted(what) => Error::corrupt(format!(
            "the file {CATALOG_FILE} is damaged: {what}; restore the store from a backup"
        )),
        other => Error::new(Kind::Io, "catalog", format!("cannot {doing} the catalog: {other}")),
    }
}
