//! What branches take on disk when one in a hundred pages of each was changed.

use super::{Bench, What, progress};
use crate::report::Better;
use crate::systems::System;
use coppice::sides::Side;

/// Weighs one branch, and more, against the base alone.
pub(crate) fn run(bench: &mut Bench<'_>) {
    bench.report.section("bytes on disk of branches with 1% of their pages changed");
    bench.systems.retain(|system| system.branches());
    let counts = bench.config.storage_branches.clone();
    let mut values: Vec<Vec<f64>> = vec![Vec::new(); counts.len()];
    for system in &mut bench.systems {
        let before = system.used_bytes();
        let mut made = 0;
        for (nth, count) in counts.iter().enumerate() {
            while made < *count {
                progress(&format!("storage: branch {made} of {}", system.name()));
                change(system.as_mut(), &format!("part-{made}"));
                made += 1;
            }
            values[nth]
                .push(system.used_bytes().saturating_sub(before) as f64 / f64::from(1 << 20));
        }
    }
    for (count, values) in counts.iter().zip(values) {
        let key = format!("storage.{count}");
        let what = "update pgbench_accounts on one page in a hundred, of each branch";
        let names = bench.systems.iter().map(|system| system.name().to_owned());
        let values = names.zip(values.into_iter().map(|value| vec![value])).collect();
        bench.add(What { key: &key, what, unit: "MiB", better: Better::Less }, values);
    }
}

/// Makes a branch and changes a row on one in a hundred of its pages.
fn change(system: &mut dyn System, branch: &str) {
    system.create(branch);
    system.visit(branch, &mut |side: &Side| {
        let number =
            |sql: &str| side.sql(sql).and_then(|text| text.parse::<u64>().ok()).expect("a number");
        let pages = number("select pg_relation_size('pgbench_accounts') / 8192");
        let changed = number(
            "with first as (select min(aid) as aid from pgbench_accounts where \
             (ctid::text::point)[0]::int % 100 = 50 group by (ctid::text::point)[0]), changed as \
             (update pgbench_accounts set abalance = abalance + 1 where aid in (select aid from \
             first) returning ctid) select count(distinct (ctid::text::point)[0]) from changed",
        );
        assert!(changed == (pages + 49) / 100, "{changed} of {pages} pages were changed");
    });
}
