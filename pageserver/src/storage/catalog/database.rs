//! The database below the catalog: how it is opened, changed and read.
//!
//! A change goes to the [`journal`]. When the journal is full, its changes go to the database in
//! one transaction. So an open database knows less than is durable, and an opening folds in what
//! the journal has.
//!
//! `redb` keeps a checksum of each page. It looks at all of them only when it opens a file that a
//! crash left; after an orderly stop it trusts the file, and would show damage or panic on it. So a
//! file is never closed in order: [`CatalogFile`] refuses the last writes of `redb`, and each
//! opening checks everything.

use crate::error::{Error, Result};
use crate::storage::catalog::change::CatalogChange;
use crate::storage::catalog::file::{Backend, CatalogFile};
use crate::storage::catalog::journal::{self, JOURNAL_FILE, Journal};
use crate::storage::catalog::migrate::{OLDEST, migrate};
use crate::storage::catalog::records::{FORMAT, Row, TABLES, encode};
use crate::storage::catalog::state::{CatalogState, MAX_NUMBER};
use crate::storage::catalog::tables::{CATALOG_FILE, NUMBERS, failed, table};
use crate::storage::disk::{Disk, DiskFile};
use redb::{Database, ReadableDatabase, ReadableTable, Table, WriteTransaction};
use std::sync::Arc;

/// What `redb` may keep in memory. What it reads twice it would not check twice, so it is more than
/// most catalogs have.
const CACHE_BYTES: usize = 64 << 20;

/// Keys of numbers: of changes so far, and of the catalog's format.
const CHANGES: &str = "changes";
const FORMAT_KEY: &str = "format";
/// Key of the number of runs of the server.
const RUN: &str = "run";

/// The database with the files below and beside it.
pub(super) struct Opened {
    database: Database,
    pub(super) file: Arc<CatalogFile>,
    disk: Arc<dyn Disk>,
    /// None if it could not be written to: then each change goes to the database by itself, and the
    /// next one tries again.
    journal: Option<Journal>,
    /// Whether it was said that there is none.
    warned: bool,
    /// What is in the journal and not in the database.
    pending: Vec<CatalogChange>,
    /// How often the catalog was changed.
    pub(super) changes: u64,
}

impl Drop for Opened {
    fn drop(&mut self) {
        self.file.refuse_writes();
    }
}

impl Opened {
    /// Opens or makes the database in `file`, of `disk`; all of it is checked. What the journal has
    /// is counted, and goes in with the next change.
    pub(super) fn open(disk: &Arc<dyn Disk>, file: &Arc<dyn DiskFile>) -> Result<Self> {
        let file =
            CatalogFile::new(Arc::clone(file)).map_err(|e| Error::io("open the catalog", &e))?;
        let file = Arc::new(file);
        let mut builder = Database::builder();
        builder.set_cache_size(CACHE_BYTES);
        let database = builder.create_with_backend(Backend(Arc::clone(&file)));
        let database = database.map_err(|e| failed("open", e))?;
        let (disk, journal, pending) = (Arc::clone(disk), None, Vec::new());
        let mut opened = Self { database, file, disk, journal, warned: false, pending, changes: 0 };
        opened.check_format()?;
        opened.changes = opened.number(CHANGES)?.unwrap_or(0);
        opened.read_journal()?;
        let runs = opened.number(RUN)?.unwrap_or(0);
        if opened.changes.max(runs) > MAX_NUMBER {
            return Err(Error::corrupt(format!(
                "the file {CATALOG_FILE} is damaged: it counts {} changes and {runs} runs; restore \
                 the store from a backup",
                opened.changes
            )));
        }
        Ok(opened)
    }

    fn check_format(&self) -> Result<()> {
        match self.number(FORMAT_KEY)? {
            None if self.store()?.is_none() => Ok(()),
            Some(OLDEST..=FORMAT) => Ok(()),
            Some(format) if format > FORMAT => Err(Error::corrupt(format!(
                "the catalog has format {format}, and this build reads {OLDEST} to {FORMAT}: use \
                 the build that wrote it, or newer"
            ))),
            _ => Err(Error::corrupt(format!(
                "the file {CATALOG_FILE} is damaged: its number \"{FORMAT_KEY}\" is missing or 0; \
                 restore the store from a backup"
            ))),
        }
    }

    /// Whether the next change takes the database to a newer format.
    pub(super) fn is_older(&self) -> Result<bool> {
        Ok(self.number(FORMAT_KEY)?.is_some_and(|format| format < FORMAT))
    }

    fn read_journal(&mut self) -> Result<()> {
        let store = self.store()?;
        for found in journal::read(&*self.disk, self.changes)? {
            if store != Some(found.store) {
                return Err(Error::corrupt(format!(
                    "the files {CATALOG_FILE} and {JOURNAL_FILE} are of different stores; restore \
                     the store from a backup"
                )));
            }
            self.pending.push(CatalogChange::decode(found.format, found.number, &found.payload)?);
            self.changes = found.number;
        }
        Ok(())
    }

    /// The store's number; none if the database is new.
    pub(in crate::storage) fn store(&self) -> Result<Option<u64>> {
        let store = self.number("store")?;
        if store.is_none() && self.tables()? > 0 {
            return Err(Error::corrupt(format!(
                "the file {CATALOG_FILE} is damaged: it does not say which store it is of; restore \
                 the store from a backup"
            )));
        }
        Ok(store)
    }

    fn tables(&self) -> Result<usize> {
        let transaction = self.database.begin_read().map_err(|e| failed("read", e))?;
        Ok(transaction.list_tables().map_err(|e| failed("read", e))?.count())
    }

    fn number(&self, key: &str) -> Result<Option<u64>> {
        let transaction = self.database.begin_read().map_err(|e| failed("read", e))?;
        let numbers = match transaction.open_table(NUMBERS) {
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
            opened => opened.map_err(|e| failed("read", e))?,
        };
        Ok(numbers.get(key).map_err(|e| failed("read", e))?.map(|value| value.value()))
    }

    /// Makes `change` durable, or fails and leaves it open whether it happened.
    pub(super) fn commit(&mut self, store: u64, change: CatalogChange) -> Result<()> {
        let bytes = change.encode();
        if let Some(journal) = self.journal.as_mut().filter(|journal| journal.takes(bytes.len())) {
            let appended = journal.append(store, self.changes + 1, &bytes);
            appended.map_err(|e| Error::io("commit a change of the catalog", &e))?;
            self.changes += 1;
            self.pending.push(change);
            return Ok(());
        }
        self.pending.push(change);
        self.write("commit a change of", |_| Ok(()))
    }

    /// Brings what the journal had into the database.
    pub(super) fn fold(&mut self) -> Result<()> {
        self.write("open", |_| Ok(()))
    }

    /// Numbers the store if it is new, and counts the run. The numbers of the store and of the run.
    pub(super) fn begin_run(&mut self, new_store: u64) -> Result<(u64, u64)> {
        let is_new = self.store()?.is_none();
        self.write("open", |numbers| {
            if is_new {
                for (key, value) in [("store", new_store), (RUN, 0)] {
                    numbers.insert(key, value).map_err(|e| failed("change", e))?;
                }
            }
            let number = |key: &str| -> Result<u64> {
                let found = numbers.get(key).map_err(|e| failed("read", e))?;
                let missing = || {
                    Error::corrupt(format!(
                        "the file {CATALOG_FILE} is damaged: it has no number \"{key}\""
                    ))
                };
                Ok(found.ok_or_else(missing)?.value())
            };
            let (store, run) = (number("store")?, number(RUN)? + 1);
            numbers.insert(RUN, run).map_err(|e| failed("change", e))?;
            Ok((store, run))
        })
    }

    /// How long moments were kept when that was last noted, in nanoseconds.
    pub(super) fn window(&self) -> Result<Option<i64>> {
        Ok(self.number("window")?.map(u64::cast_signed))
    }

    /// Remembers how long moments are kept.
    pub(super) fn note_window(&mut self, window_ns: i64) -> Result<()> {
        self.write("commit a change of", |numbers| {
            let noted = numbers.insert("window", window_ns.cast_unsigned());
            noted.map(drop).map_err(|e| failed("change", e))
        })
    }

    /// Runs one transaction, which counts itself, behind what the journal has. That begins anew
    /// then.
    fn write<T>(
        &mut self,
        doing: &str,
        work: impl FnOnce(&mut Table<'_, &'static str, u64>) -> Result<T>,
    ) -> Result<T> {
        let transaction =
            self.database.begin_write().map_err(|e| failed("begin a change of", e))?;
        let changes = self.changes + 1;
        let value = {
            let mut numbers = transaction.open_table(NUMBERS).map_err(|e| failed("change", e))?;
            numbers.insert(CHANGES, changes).map_err(|e| failed("change", e))?;
            let format = numbers.insert(FORMAT_KEY, FORMAT).map_err(|e| failed("change", e))?;
            let format = format.map_or(FORMAT, |format| format.value());
            migrate(&transaction, format)?;
            put(&transaction, &mut numbers, &self.pending)?;
            work(&mut numbers)?
        };
        let used_pages = transaction.stats().map_err(|e| failed("change", e))?.allocated_pages();
        transaction.commit().map_err(|e| failed(doing, e))?;
        self.file.want_reserve(used_pages);
        self.changes = changes;
        self.pending.clear();
        self.begin_journal();
        Ok(value)
    }

    fn begin_journal(&mut self) {
        let begun = Journal::begin(&*self.disk);
        if let Some(error) = begun.as_ref().err().filter(|_| !self.warned) {
            tracing::warn!(
                %error,
                "the file {JOURNAL_FILE} cannot be written to; changes take longer"
            );
        }
        self.warned = begun.is_err();
        self.journal = begun.ok();
    }

    /// All that it says.
    pub(super) fn load(&self) -> Result<CatalogState> {
        let transaction = self.database.begin_read().map_err(|e| failed("read", e))?;
        let mut state = CatalogState::default();
        let numbers = transaction.open_table(NUMBERS).map_err(|e| failed("read", e))?;
        for (key, next) in &mut state.next {
            let value = numbers.get(*key).map_err(|e| failed("read", e))?;
            *next = value.map_or(*next, |value| value.value());
        }
        let number = |key: &str| -> Result<i64> {
            let value = numbers.get(key).map_err(|e| failed("read", e))?;
            Ok(value.map_or(0, |value| value.value().cast_signed()))
        };
        state.default_window_ns = number("window")?;
        state.history_from_ns = number("history_from")?;
        for name in TABLES {
            let rows = transaction.open_table(table(name)).map_err(|e| failed("read", e))?;
            for entry in rows.iter().map_err(|e| failed("read", e))? {
                let (key, value) = entry.map_err(|e| failed("read", e))?;
                state.set(Row::decode(name, key.value(), Some(value.value()))?);
            }
        }
        state.check()?;
        Ok(state)
    }
}

/// Brings changes into the tables, oldest first.
fn put(
    transaction: &WriteTransaction,
    numbers: &mut Table<'_, &'static str, u64>,
    changes: &[CatalogChange],
) -> Result<()> {
    let next = changes.iter().flat_map(|change| &change.next);
    for (key, value) in next {
        numbers.insert(&**key, value).map_err(|e| failed("change", e))?;
    }
    for name in TABLES {
        let mut rows = transaction.open_table(table(name)).map_err(|e| failed("change", e))?;
        let of_table = changes.iter().flat_map(|change| &change.rows);
        for Row { key, record, .. } in of_table.filter(|row| row.table == *name) {
            match record {
                Some(record) => rows.insert(&**key, &*encode(record)),
                None => rows.remove(&**key),
            }
            .map_err(|e| failed("change", e))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::catalog::Catalog;
    use crate::storage::disk::sim::SimDisk;
    use redb::TableDefinition;

    #[test]
    fn counters_that_are_used_up_are_refused() {
        for (key, value) in [(RUN, u64::MAX), (CHANGES, u64::MAX)] {
            let disk: Arc<dyn Disk> = Arc::new(SimDisk::default());
            let file = disk.create(CATALOG_FILE).unwrap();
            let mut opened = Opened::open(&disk, &file).unwrap();
            opened.begin_run(7).unwrap();
            let set = opened.write("test", |numbers| {
                numbers.insert(key, value).unwrap();
                Ok(())
            });
            set.unwrap();
            let error = Opened::open(&disk, &file).err().unwrap();
            assert_eq!(error.code, "corrupt", "{error}");
        }
    }

    #[test]
    fn a_catalog_of_a_later_format_is_refused_by_name() {
        let disk: Arc<dyn Disk> = Arc::new(SimDisk::default());
        let file = disk.create(CATALOG_FILE).unwrap();
        let mut opened = Opened::open(&disk, &file).unwrap();
        opened.begin_run(7).unwrap();
        assert_eq!(opened.number(FORMAT_KEY).unwrap(), Some(FORMAT));
        let newer = FORMAT + 1;
        let newer =
            format!("has format {newer}, and this build reads 1 to {FORMAT}: use the build");
        for (format, expected) in [(FORMAT + 1, &*newer), (0, "\"format\" is missing or 0")] {
            let set = opened.write("test", |numbers| {
                numbers.insert(FORMAT_KEY, format).unwrap();
                Ok(())
            });
            set.unwrap();
            let error = Opened::open(&disk, &file).err().unwrap();
            assert!(error.detail.contains(expected), "{error}");
        }
    }

    #[test]
    fn a_catalog_that_cannot_be_loaded_keeps_its_format() {
        let disk: Arc<dyn Disk> = Arc::new(SimDisk::default());
        let file = disk.create(CATALOG_FILE).unwrap();
        let mut opened = Opened::open(&disk, &file).unwrap();
        opened.begin_run(7).unwrap();
        let transaction = opened.database.begin_write().unwrap();
        {
            let older: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("timelines");
            transaction.open_table(NUMBERS).unwrap().insert(FORMAT_KEY, 2).unwrap();
            transaction.open_table(older).unwrap().insert(1, &b"{"[..]).unwrap();
        }
        transaction.commit().unwrap();
        drop(opened);
        let error = Catalog::open(&disk, 7).err().unwrap();
        assert_eq!(error.code, "corrupt", "{error}");
        let opened = Opened::open(&disk, &file).unwrap();
        assert_eq!(opened.number(FORMAT_KEY).unwrap(), Some(2), "older builds can still open it");
    }
}
