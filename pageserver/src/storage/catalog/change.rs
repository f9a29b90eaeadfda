//! A change of the catalog as the journal has it: rows of the tables, and the next free numbers.

use crate::error::{Error, Result};
use crate::storage::catalog::records::{BranchRecord, Row, TimelineRecord, Update, decode, encode};
use crate::storage::page::TimelineId;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// What one transaction says.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::storage) struct CatalogChange {
    /// In the order in which they take effect.
    pub(in crate::storage) rows: Vec<Row>,
    /// The next free numbers.
    pub(in crate::storage) next: BTreeMap<String, u64>,
}

/// Rows of a change as JSON: table, key, and the record or null.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written<R> {
    rows: Vec<R>,
    next: BTreeMap<String, u64>,
}

/// A change as journals of format 1 have it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenBefore {
    put_timelines: Vec<(u64, TimelineRecord)>,
    remove_timelines: Vec<u64>,
    remove_branches: Vec<String>,
    put_branches: Vec<(String, BranchRecord)>,
    next: BTreeMap<String, u64>,
}

impl CatalogChange {
    /// What `update` comes to, with the `timelines` as they are then and those that are `freed`.
    pub(in crate::storage) fn new(
        update: Update,
        timelines: Vec<(TimelineId, TimelineRecord)>,
        freed: &[TimelineId],
        next: &BTreeMap<&'static str, u64>,
    ) -> Self {
        let put = |(id, record)| Row::put(&Row::timeline_key(id), record);
        let free = |id: &TimelineId| Row::remove::<TimelineRecord>(&Row::timeline_key(*id));
        let rows = timelines.into_iter().map(put).chain(update.rows).chain(freed.iter().map(free));
        let next = next.iter().map(|(of, next)| ((*of).to_owned(), *next)).collect();
        Self { rows: rows.collect(), next }
    }

    /// The change as JSON.
    pub(super) fn encode(&self) -> Vec<u8> {
        let rows = self.rows.iter().map(|row| (row.table, &row.key, &row.record)).collect();
        encode(&Written { rows, next: self.next.clone() })
    }

    /// A change that a journal of this `format` holds under `number`.
    pub(super) fn decode(format: u32, number: u64, json: &[u8]) -> Result<Self> {
        if format == 1 {
            let before: WrittenBefore = decode("journal", &format!("change {number}"), json)?;
            return Ok(Self::from(before));
        }
        let written: Written<(String, String, Option<Value>)> =
            decode("journal", &format!("change {number}"), json)?;
        let row = |(table, key, value): (String, String, Option<Value>)| {
            Row::decode(&table, &key, value.map(|value| encode(&value)).as_deref())
        };
        let rows = written.rows.into_iter().map(row).collect::<Result<Vec<Row>>>();
        let in_journal = |error: Error| Error {
            detail: format!("{}, in the file journal", error.detail),
            ..error
        };
        Ok(Self { rows: rows.map_err(in_journal)?, next: written.next })
    }
}

impl From<WrittenBefore> for CatalogChange {
    fn from(before: WrittenBefore) -> Self {
        let put = |(id, record)| Row::put(&Row::timeline_key(TimelineId(id)), record);
        let free = |id| Row::remove::<TimelineRecord>(&Row::timeline_key(TimelineId(id)));
        let unname = |name: String| Row::remove::<BranchRecord>(&name);
        let name = |(name, record): (String, BranchRecord)| Row::put(&name, record);
        let rows = (before.put_timelines.into_iter().map(put))
            .chain(before.remove_branches.into_iter().map(unname))
            .chain(before.put_branches.into_iter().map(name))
            .chain(before.remove_timelines.into_iter().map(free));
        Self { rows: rows.collect(), next: before.next }
    }
}
