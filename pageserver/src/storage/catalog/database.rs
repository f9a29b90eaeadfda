//! The database below the catalog: how it is opened, changed and read.
//!
//! A change goes to the [`journal`], and along with others to the
//! database once that is full, so the database knows less than is durable while it is open. An
//! opening folds in what the journal has.
//!
//! `redb` keeps a checksum of each page and looks at all of them only when it opens a file that a
//! crash left. After a stop in order, or a crash right after it recovered, it would trust what it
//! finds; damage would then be shown, or end the server in the middle of `redb`. So a file is never
//! closed in order: what `redb` wants to write as it is closed is kept from it, and each opening
//! checks everything ([`CatalogFile`] sees to it).

use crate::error::{Error, Kind, Result};
use crate::storage::catalog::file::{Backend, CatalogFile};
use crate::storage::catalog::journal::{self, JOURNAL_FILE, Journal};
use crate::storage::catalog::state::State;
use crate::storage::catalog::{
    BranchRecord, CATALOG_FILE, DEFAULT_BRANCH, TimelineRecord, Update, decode, encode,
};
use crate::storage::disk::{Disk, DiskFile};
use crate::storage::page::TimelineId;
use redb::{Database, ReadableDatabase, ReadableTable, Table, TableDefinition, WriteTransaction};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Version of the catalog, kept under `format`.
const CATALOG_FORMAT: u64 = 2;
/// The version before there was a journal, which is read, too.
const FORMAT_WITHOUT_JOURNAL: u64 = 1;
/// What `redb` may keep in memory. What it reads twice it would not check twice, so it is more than
/// most catalogs have.
const CACHE_BYTES: usize = 64 << 20;

const NUMBERS: TableDefinition<'_, &str, u64> = TableDefinition::new("numbers");
const TIMELINES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("timelines");
const BRANCHES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("branches");
/// Key of the number of changes so far.
const CHANGES: &str = "changes";

/// The database with the files below and beside it.
pub(in crate::storage) struct Opened {
    database: Database,
    pub(in crate::storage) file: Arc<CatalogFile>,
    disk: Arc<dyn Disk>,
    /// None if it could not be written to: then each change goes to the database by itself, and the
    /// next one tries again.
    journal: Option<Journal>,
    /// Whether it was said that there is none.
    warned: bool,
    /// What is in the journal and not in the database.
    pending: Vec<Change>,
    /// How often the catalog was changed.
    pub(in crate::storage) changes: u64,
}

/// What a change puts and removes.
#[derive(Serialize, Deserialize)]
pub(in crate::storage) struct Change {
    put_timelines: Vec<(u64, TimelineRecord)>,
    remove_timelines: Vec<u64>,
    /// Before names are put.
    remove_branches: Vec<String>,
    put_branches: Vec<(String, BranchRecord)>,
    /// The next free numbers.
    next: BTreeMap<String, u64>,
}

impl Change {
    pub(in crate::storage) fn new(
        update: &Update,
        timelines: Vec<(TimelineId, TimelineRecord)>,
        freed: &[TimelineId],
        next: &BTreeMap<&'static str, u64>,
    ) -> Self {
        Self {
            put_timelines: timelines.into_iter().map(|(id, record)| (id.0, record)).collect(),
            remove_timelines: freed.iter().map(|id| id.0).collect(),
            remove_branches: update.remove_branches.clone(),
            put_branches: update.put_branches.clone(),
            next: next.iter().map(|(of, next)| ((*of).to_owned(), *next)).collect(),
        }
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        self.file.refuse_writes();
    }
}

fn failed(doing: &str, error: impl Into<redb::Error>) -> Error {
    match error.into() {
        redb::Error::Io(error) => Error::io(format!("{doing} the catalog"), &error),
        redb::Error::Corrupted(what) => Error::corrupt(format!(
            "the file {CATALOG_FILE} is damaged: {what}; restore the store from a backup"
        )),
        other => Error::new(Kind::Io, "catalog", format!("cannot {doing} the catalog: {other}")),
    }
}

impl Opened {
    /// Opens or makes the database in `file`, of `disk`; all of it is checked. What the journal has
    /// is counted, and goes in with the next change.
    pub(in crate::storage) fn open(disk: &Arc<dyn Disk>, file: &Arc<dyn DiskFile>) -> Result<Self> {
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
        Ok(opened)
    }

    fn check_format(&self) -> Result<()> {
        match self.number("format")? {
            None | Some(FORMAT_WITHOUT_JOURNAL | CATALOG_FORMAT) => Ok(()),
            Some(format) => Err(Error::corrupt(format!(
                "the catalog has format version {format}, this build reads {CATALOG_FORMAT}: use \
                 the build that wrote it"
            ))),
        }
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
            self.pending.push(decode(
                &format!("change {} in the file {JOURNAL_FILE}", found.number),
                &found.payload,
            )?);
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
    pub(in crate::storage) fn commit(&mut self, store: u64, change: Change) -> Result<()> {
        let bytes = encode(&change);
        if let Some(journal) = self.journal.as_mut().filter(|journal| journal.takes(bytes.len())) {
            let appended = journal.append(store, self.changes + 1, &bytes);
            appended.map_err(|e| Error::io("commit a change of the catalog", &e))?;
            self.changes += 1;
            self.pending.push(change);
            return Ok(());
        }
        self.pending.push(change);
        self.write("commit a change of", |_, _| Ok(()))
    }

    /// Brings what the journal had into the database.
    pub(in crate::storage) fn fold(&mut self) -> Result<()> {
        self.write("open", |_, _| Ok(()))
    }

    /// Numbers the store if it is new, and counts the run. The numbers of the store and of the run.
    pub(in crate::storage) fn begin_run(&mut self, new_store: u64) -> Result<(u64, u64)> {
        let is_new = self.store()?.is_none();
        self.write("open", |transaction, numbers| {
            if is_new {
                transaction.open_table(TIMELINES).map_err(|e| failed("open", e))?;
                transaction.open_table(BRANCHES).map_err(|e| failed("open", e))?;
                for (key, value) in [("store", new_store), ("run", 0)] {
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
            let (store, run) = (number("store")?, number("run")? + 1);
            for (key, value) in [("format", CATALOG_FORMAT), ("run", run)] {
                numbers.insert(key, value).map_err(|e| failed("change", e))?;
            }
            Ok((store, run))
        })
    }

    /// Remembers how long moments are kept; the time before which none is to be had.
    pub(in crate::storage) fn note_window(&mut self, window_ns: i64, now_ns: i64) -> Result<i64> {
        self.write("commit a change of", |_, numbers| {
            let number = |key: &str| -> Result<Option<i64>> {
                let found = numbers.get(key).map_err(|e| failed("read", e))?;
                Ok(found.map(|value| value.value().cast_signed()))
            };
            let (before, from_ns) = (number("window")?, number("history_from")?.unwrap_or(0));
            let grew = before.filter(|before| *before < window_ns);
            let from_ns = from_ns.max(grew.map_or(0, |before| now_ns.saturating_sub(before)));
            for (key, value) in [("window", window_ns), ("history_from", from_ns)] {
                numbers.insert(key, value.cast_unsigned()).map_err(|e| failed("change", e))?;
            }
            Ok(from_ns)
        })
    }

    /// Runs one transaction, which counts itself, behind what the journal has. That begins anew
    /// then.
    fn write<T>(
        &mut self,
        doing: &str,
        work: impl FnOnce(&WriteTransaction, &mut Table<'_, &'static str, u64>) -> Result<T>,
    ) -> Result<T> {
        let transaction =
            self.database.begin_write().map_err(|e| failed("begin a change of", e))?;
        let changes = self.changes + 1;
        let value = {
            let mut numbers = transaction.open_table(NUMBERS).map_err(|e| failed("change", e))?;
            numbers.insert(CHANGES, changes).map_err(|e| failed("change", e))?;
            put(&transaction, &mut numbers, &self.pending)?;
            work(&transaction, &mut numbers)?
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
    pub(in crate::storage) fn load(&self) -> Result<State> {
        let transaction = self.database.begin_read().map_err(|e| failed("read", e))?;
        let mut state = State::default();
        let numbers = transaction.open_table(NUMBERS).map_err(|e| failed("read", e))?;
        for (key, first) in [("timeline", 1), ("branch", DEFAULT_BRANCH + 1)] {
            let value = numbers.get(key).map_err(|e| failed("read", e))?;
            state.next.insert(key, value.map_or(first, |value| value.value()));
        }
        let mut update = Update::default();
        let timelines = transaction.open_table(TIMELINES).map_err(|e| failed("read", e))?;
        for entry in timelines.iter().map_err(|e| failed("read", e))? {
            let (key, value) = entry.map_err(|e| failed("read", e))?;
            let id = TimelineId(key.value());
            update.add_timelines.push((id, decode(&format!("timeline {id}"), value.value())?));
        }
        let branches = transaction.open_table(BRANCHES).map_err(|e| failed("read", e))?;
        for entry in branches.iter().map_err(|e| failed("read", e))? {
            let (key, value) = entry.map_err(|e| failed("read", e))?;
            let name = key.value().to_owned();
            let record = decode(&format!("branch \"{name}\""), value.value())?;
            update.put_branches.push((name, record));
        }
        state.apply(update, &[]);
        state.check()?;
        Ok(state)
    }
}

/// Brings changes into the tables, oldest first.
fn put(
    transaction: &WriteTransaction,
    numbers: &mut Table<'_, &'static str, u64>,
    changes: &[Change],
) -> Result<()> {
    if changes.is_empty() {
        return Ok(());
    }
    let mut timelines = transaction.open_table(TIMELINES).map_err(|e| failed("change", e))?;
    let mut branches = transaction.open_table(BRANCHES).map_err(|e| failed("change", e))?;
    for change in changes {
        for (key, value) in &change.next {
            numbers.insert(&**key, value).map_err(|e| failed("change", e))?;
        }
        for (id, record) in &change.put_timelines {
            timelines.insert(id, &*encode(record)).map_err(|e| failed("change", e))?;
        }
        for id in &change.remove_timelines {
            timelines.remove(id).map_err(|e| failed("change", e))?;
        }
        for name in &change.remove_branches {
            branches.remove(&**name).map_err(|e| failed("change", e))?;
        }
        for (name, record) in &change.put_branches {
            branches.insert(&**name, &*encode(record)).map_err(|e| failed("change", e))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::disk::sim::SimDisk;

    #[test]
    fn a_catalog_from_before_the_journal_is_taken_over_and_one_of_a_later_version_refused() {
        let disk: Arc<dyn Disk> = Arc::new(SimDisk::default());
        let file = disk.create(CATALOG_FILE).unwrap();
        let mut opened = Opened::open(&disk, &file).unwrap();
        opened.begin_run(7).unwrap();
        let set = |opened: &mut Opened, format: u64| {
            let set = opened.write("test", |_, numbers| {
                numbers.insert("format", format).unwrap();
                Ok(())
            });
            set.unwrap();
        };
        set(&mut opened, FORMAT_WITHOUT_JOURNAL);
        drop(opened);
        let mut opened = Opened::open(&disk, &file).unwrap();
        assert_eq!(opened.begin_run(8).unwrap(), (7, 2));
        assert_eq!(opened.number("format").unwrap(), Some(CATALOG_FORMAT));
        set(&mut opened, CATALOG_FORMAT + 1);
        drop(opened);
        let error = Opened::open(&disk, &file).err().unwrap();
        assert!(
            error.detail.contains("version 3") && error.detail.contains("use the build"),
            "{error}"
        );
    }
}
