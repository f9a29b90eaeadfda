//! Bulk loads, and the checkpoint of much that changed.

use super::{Bench, What};
use crate::report::Better;
use coppice::Directory;
use coppice::sides::Side;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

/// Rows of the table of the checkpoint, of which some 20 fit a page that is filled to three fifths.
const ROWS_A_MB: u64 = 2560;
/// Of so many rows, one is changed: at least one on each page.
const ONE_OF: u64 = 20;

/// `COPY`, `CREATE TABLE AS` and `CREATE INDEX`.
pub(crate) fn run(bench: &mut Bench<'_>, directory: &Directory) {
    let (rows, rounds) = (bench.config.rows, bench.config.long_rounds);
    let selected = rows + rows / 2;
    let file = directory.path().join("rows.tsv");
    write_rows(&file, rows);
    let copy = format!("copy bulk_copy from '{}'", file.display());
    let ctas = format!(
        "create table bulk_ctas as select i, md5(i::text) from generate_series(1, {selected}) i"
    );
    let index = "create index on bulk_ctas (md5)";
    let make = "create table bulk_copy (id bigint, number int, note text)";
    for side in bench.systems.iter().map(|system| system.side()) {
        side.sql("drop table if exists bulk_copy, bulk_ctas");
    }
    let rate = |side: &Side, count: u64, statement: &str| {
        count as f64 / side.time(statement).as_secs_f64()
    };
    let what = |key, what| What { key, what, unit: "rows/s", better: Better::More };
    bench.compare_running(what("bulk.copy", "copy bulk_copy from a file"), rounds, |side| {
        side.sql("drop table if exists bulk_copy");
        side.sql(make);
        side.sql("checkpoint");
        rate(side, rows, &copy)
    });
    bench.compare_running(what("bulk.ctas", &ctas), rounds, |side| {
        side.sql("drop table if exists bulk_ctas");
        side.sql("checkpoint");
        rate(side, selected, &ctas)
    });
    bench.compare_running(what("bulk.index", index), rounds, |side| {
        side.sql("drop index if exists bulk_ctas_md5_idx");
        side.sql("checkpoint");
        rate(side, selected, index)
    });
    for side in bench.systems.iter().map(|system| system.side()) {
        side.sql("drop table bulk_copy, bulk_ctas");
        side.sql("checkpoint");
    }
    std::fs::remove_file(file).expect("remove the rows");
}

fn write_rows(path: &Path, rows: u64) {
    let mut file = BufWriter::new(File::create(path).expect("make the file of rows"));
    let mut line = String::new();
    for row in 0..rows {
        line.clear();
        // Some of it looks random, so that it is neither all alike nor all noise.
        let noise = row.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let _ = writeln!(line, "{row}\t{}\tnote {noise:016x} of row {row}", noise % 1_000_000);
        file.write_all(line.as_bytes()).expect("write a row");
    }
    file.flush().expect("write the rows");
}

/// Every page of a table is changed in place, and then brought to the disk.
pub(crate) fn checkpoint(bench: &mut Bench<'_>) {
    let (mb, rounds) = (bench.config.dirty_mb, bench.config.long_rounds);
    for side in bench.systems.iter().map(|system| system.side()) {
        side.sql("drop table if exists dirty");
        side.sql(
            "create table dirty (id int, n int, pad text) with (fillfactor = 60, \
             autovacuum_enabled = off)",
        );
        side.sql(&format!(
            "insert into dirty select i, 0, repeat(md5(i::text), 6) from generate_series(1, {}) i",
            mb * ROWS_A_MB
        ));
        side.sql("vacuum dirty");
        let size = side
            .sql("select pg_relation_size('dirty') >> 20")
            .and_then(|mb| mb.parse::<u64>().ok());
        let size = size.expect("the size of the table");
        assert!(size.abs_diff(mb) <= mb / 10, "the table has {size} MB, not {mb}");
    }
    let update = format!("update dirty set n = n + 1 where id % {ONE_OF} = 0");
    let what = format!("checkpoint after: {update} ({mb} MB)");
    bench.compare_running(
        What { key: "checkpoint", what: &what, unit: "ms", better: Better::Less },
        rounds,
        |side| {
            side.sql(&update);
            side.time("checkpoint").as_secs_f64() * 1e3
        },
    );
    bench.systems.iter().map(|system| system.side()).for_each(|side| {
        side.sql("drop table dirty");
        side.sql("checkpoint");
    });
}
