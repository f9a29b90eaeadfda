//! Which plots there are of the results.

use crate::plot::{Chart, Scale};
use crate::results::{Results, Row};

/// The sides, ours first, each with its name and the colour of its bars.
type Series = (&'static str, &'static str, &'static str);
const SYSTEMS: [Series; 4] = [
    ("coppice", "Coppice", "#2f7d4f"),
    ("native", "native", "#8a968d"),
    ("btrfs", "btrfs", "#c9772b"),
    ("xfs", "XFS", "#3a64a8"),
];
const PROXIES: [Series; 2] =
    [("proxy", "Coppice's proxy", "#2f7d4f"), ("pgbouncer", "PgBouncer", "#8458a6")];

/// Name of the file, and the plot, for each table of the results.
pub(crate) fn all(results: &Results) -> [(&'static str, Chart); 4] {
    let [work, branches, storage, proxy] = results.tables();
    let branching: Vec<_> = SYSTEMS.into_iter().filter(|(side, ..)| *side != "native").collect();
    let postgres = results.part("machine")["postgres"].as_str().unwrap_or_default();
    let equal = format!("the same PostgreSQL {postgres} with the same settings, in turns; medians");
    let relative = |rows: &[Row], series: &[Series], whole: &str| {
        groups(rows, series, |key, side| {
            Some(results.speed(key, side)? / results.speed(key, whole)?)
        })
    };
    let count = |key: &str| key.rsplit('.').next().and_then(|count| count.parse::<f64>().ok());
    let throughput = Chart {
        title: "Speed of Postgres relative to the local file system",
        subtitle: equal.clone(),
        axis: "speed, native = 1.0; longer is better",
        scale: Scale::Linear,
        reference: Some((1.0, "native")),
        groups: relative(&work.rows, &branching, "native"),
        series: shown(&branching),
    };
    let latency = Chart {
        title: "Time to a branch, and to its first row",
        subtitle: format!("{equal}; native has no branches, and starts what it has"),
        axis: "milliseconds, logarithmic; shorter is better",
        scale: Scale::Log,
        reference: None,
        groups: groups(&branches.rows, &SYSTEMS, |key, side| results.figure(key, side)),
        series: shown(&SYSTEMS),
    };
    let storage = Chart {
        title: "Disk taken by each branch with 1% of its pages changed",
        subtitle: "beyond the base that they share, write-ahead log included".to_owned(),
        axis: "MiB for each branch; shorter is better",
        scale: Scale::Linear,
        reference: None,
        groups: groups(&storage.rows, &branching, |key, side| {
            Some(results.figure(key, side)? / count(key)?)
        }),
        series: shown(&branching),
    };
    let proxy = Chart {
        title: "Speed through the proxy relative to the bare Unix socket",
        subtitle: equal,
        axis: "speed, socket = 1.0; longer is better",
        scale: Scale::Linear,
        reference: Some((1.0, "socket")),
        groups: relative(&proxy.rows, &PROXIES, "direct"),
        series: shown(&PROXIES),
    };
    [
        ("bench-throughput.svg", throughput),
        ("bench-latency.svg", latency),
        ("bench-storage.svg", storage),
        ("bench-proxy.svg", proxy),
    ]
}

/// Those rows of which there are figures.
fn groups(
    rows: &[Row],
    series: &[Series],
    value: impl Fn(&str, &str) -> Option<f64>,
) -> Vec<(String, Vec<Option<f64>>)> {
    let group = |row: &Row| {
        let values: Vec<_> = series.iter().map(|(side, ..)| value(&row.key, side)).collect();
        (row.name.replace('`', ""), values)
    };
    rows.iter().map(group).filter(|(_, values)| values.iter().any(Option::is_some)).collect()
}

fn shown(series: &[Series]) -> Vec<(&'static str, &'static str)> {
    series.iter().map(|(_, name, colour)| (*name, *colour)).collect()
}
