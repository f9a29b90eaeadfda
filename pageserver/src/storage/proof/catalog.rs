//! What must hold for any values that the catalog's database gives back.
//!
//! Invariants checked: nothing panics; a value that decodes encodes to one that decodes to the
//! same; a catalog that checks still does when its branches are removed one by one, and nothing of
//! it is left then.

use crate::storage::catalog::change::CatalogChange;
use crate::storage::catalog::records::{
    BranchRecord, Record, Row, TABLES, TimelineRecord, Update, encode,
};
use crate::storage::catalog::state::CatalogState;
use crate::storage::page::TimelineId;

/// Most values that are taken for a catalog, so that no input takes long.
const VALUES_MAX: usize = 64;

/// Checks all of it on `bytes`: each line is a value, the n-th that of timeline n or of a branch of
/// that name.
///
/// # Panics
/// If something does not hold.
pub fn catalog(bytes: &[u8]) {
    let mut state = CatalogState::default();
    state.next.insert("timeline", VALUES_MAX as u64 + 1);
    for (nth, line) in (1..).zip(bytes.split(|byte| *byte == b'\n').take(VALUES_MAX)) {
        for table in TABLES {
            let timeline = *table == TimelineRecord::TABLE;
            let key = if timeline { Row::timeline_key(TimelineId(nth)) } else { nth.to_string() };
            if let Some(row) = round_trip(table, &key, line) {
                state.set(row);
            }
        }
    }
    if state.check().is_ok() {
        take_apart(state);
    }
}

fn round_trip(table: &str, key: &str, json: &[u8]) -> Option<Row> {
    let row = Row::decode(table, key, Some(json)).ok()?;
    let again = row.record.as_ref().map(encode);
    let again = Row::decode(table, key, again.as_deref());
    assert_eq!(again.as_ref().ok(), Some(&row));
    Some(row)
}

fn take_apart(mut state: CatalogState) {
    // Timelines that nothing needs, such as those of imports that a crash cut off.
    let release = state.timelines.keys().map(|id| TimelineId(*id)).collect();
    remove(&mut state, Update { release, ..Update::default() });
    let names: Vec<String> = state.branches.keys().cloned().collect();
    for name in names {
        remove(&mut state, Update::default().remove::<BranchRecord>(&name));
    }
    let left = state.timelines.keys().collect::<Vec<_>>();
    assert!(left.is_empty() && state.names.is_empty(), "timelines {left:?} are left");
}

fn remove(state: &mut CatalogState, update: Update) {
    let freed = state.freed_by(&update);
    let sound = state.timelines_after(&update).map(|put| put.len());
    assert_eq!(sound.ok(), Some(0), "a removal changes no timeline");
    state.apply(CatalogChange::new(update, Vec::new(), &freed, &state.next.clone()));
    state.check().expect("a catalog without a branch is sound");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::disk::random::Random;

    const ROOT: &str = r#"{"ancestor":null}"#;

    fn fork(of: u64) -> String {
        format!(r#"{{"ancestor":{{"timeline":{of},"at":[9,9],"synced":[8,8]}}}}"#)
    }

    fn branch(timeline: u64) -> String {
        let times = r#""created_ns":1,"forked_ns":1"#;
        let rest = r#""protected":false,"password":null"#;
        format!(r#"{{"id":1,"timeline":{timeline},"parent":null,{times},{rest}}}"#)
    }

    #[test]
    fn holds_for_random_families() {
        let mut random = Random(11);
        for _ in 0..300 {
            let mut lines = vec![ROOT.to_owned()];
            for nth in 2..2 + random.below(12) {
                let of = 1 + random.below(nth);
                lines.push(match random.below(4) {
                    0 => ROOT.to_owned(),
                    1 | 2 => fork(of),
                    _ => branch(of),
                });
            }
            catalog(lines.join("\n").as_bytes());
        }
    }

    #[test]
    fn holds_for_values_that_are_none() {
        for text in [
            "",
            "{}",
            "null",
            r#"{"ancestor":{}}"#,
            "{\"ancestor\":null,\"lanes\":[]}",
            "\u{0}",
            "[[[[",
        ] {
            catalog(text.as_bytes());
        }
        catalog(&[ROOT.as_bytes(), b"\n\xff\xfe\n", branch(1).as_bytes()].concat());
        catalog(format!("{}\n{}", fork(2), fork(1)).as_bytes());
    }
}
