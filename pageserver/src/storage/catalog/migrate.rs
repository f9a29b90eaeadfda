//! From the catalog's older formats to today's, in the transaction that writes the new number.

use crate::error::Result;
use crate::storage::catalog::records::{BranchRecord, FORMAT, Record, Row, TABLES, TimelineRecord};
use crate::storage::catalog::tables::{failed, table};
use crate::storage::page::TimelineId;
use redb::{ReadableTable, TableDefinition, WriteTransaction};

/// The oldest format that this build takes over.
pub(super) const OLDEST: u64 = 1;

/// What leads from the format before to this one.
type Step = (u64, fn(&WriteTransaction) -> Result<()>);

const STEPS: [Step; 4] = [(2, |_| Ok(())), (3, key_by_text), (4, |_| Ok(())), (5, |_| Ok(()))];

/// Takes a catalog of format `from`, or a new one, to today's format.
pub(super) fn migrate(transaction: &WriteTransaction, from: u64) -> Result<()> {
    for name in TABLES {
        transaction.open_table(table(name)).map_err(|e| failed("change", e))?;
    }
    for (format, step) in STEPS.iter().filter(|(format, _)| *format > from) {
        step(transaction)?;
        tracing::info!(format, "the catalog has a new format; older builds refuse it");
    }
    Ok(())
}

/// Until format 2, timelines were in a table by number, and branches in one of another name.
fn key_by_text(transaction: &WriteTransaction) -> Result<()> {
    const TIMELINES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("timelines");
    const BRANCHES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("branches");
    {
        let old = transaction.open_table(TIMELINES).map_err(|e| failed("read", e))?;
        let mut new = open::<TimelineRecord>(transaction)?;
        for entry in old.iter().map_err(|e| failed("read", e))? {
            let (id, value) = entry.map_err(|e| failed("read", e))?;
            let key = Row::timeline_key(TimelineId(id.value()));
            new.insert(&*key, value.value()).map_err(|e| failed("change", e))?;
        }
        let old = transaction.open_table(BRANCHES).map_err(|e| failed("read", e))?;
        let mut new = open::<BranchRecord>(transaction)?;
        for entry in old.iter().map_err(|e| failed("read", e))? {
            let (name, value) = entry.map_err(|e| failed("read", e))?;
            new.insert(name.value(), value.value()).map_err(|e| failed("change", e))?;
        }
    }
    transaction.delete_table(TIMELINES).map_err(|e| failed("change", e))?;
    transaction.delete_table(BRANCHES).map_err(|e| failed("change", e))?;
    Ok(())
}

fn open<'t, R: Record>(
    transaction: &'t WriteTransaction,
) -> Result<redb::Table<'t, &'static str, &'static [u8]>> {
    transaction.open_table(table(R::TABLE)).map_err(|e| failed("change", e))
}

const _: () = assert!(STEPS[STEPS.len() - 1].0 == FORMAT && STEPS[0].0 == OLDEST + 1);
