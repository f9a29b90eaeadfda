//! Tables of the other benchmarks, and of README, between marks of their own.

use crate::report::root;
use coppice::figures::results;
use serde_json::Value;
use std::fs;

/// The benchmarks whose figures are tables of docs/benchmarks.md.
const NAMED: [&str; 2] = ["latency", "scale"];
/// What README shows: the benchmark, its row, and what README calls it.
const SPEED: [(&str, &str, &str); 6] = [
    ("latency", "create, 10 branches", "create a branch"),
    ("scale", "create, the last", "create a branch beside 10,000 others"),
    ("latency", "reset, 10 branches", "reset a branch"),
    ("latency", "delete, 10 branches", "delete a branch"),
    ("latency", "create to first row, idle parent, empty", "create a branch, get its first row"),
    ("latency", "wake to first row, empty", "wake a suspended branch, get its first row"),
];

/// The figures of a benchmark, if it has run.
fn read(name: &str) -> Option<Value> {
    let text = fs::read_to_string(results(name)).ok()?;
    Some(serde_json::from_str(&text).expect("the figures are JSON"))
}

fn rows(figures: &Value) -> &[Value] {
    figures["rows"].as_array().map_or(&[], Vec::as_slice)
}

fn ms(row: &Value, part: &str) -> String {
    let value = row[part].as_f64().unwrap_or(0.0);
    if value < 10.0 { format!("{value:.2} ms") } else { format!("{value:.0} ms") }
}

/// Puts `table` where `page` has the marks of `name`.
fn put_between(page: &str, name: &str, table: &str) -> String {
    let (begin, end) = (format!("<!-- from {name}: -->"), format!("<!-- end of {name} -->"));
    let (before, rest) = page.split_once(&begin).expect("the mark where the table begins");
    let (_, after) = rest.split_once(&end).expect("the mark where the table ends");
    format!("{before}{begin}\n{table}{end}{after}")
}

fn table(name: &str, figures: &Value) -> String {
    let text = |name: &str| figures[name].as_str().unwrap_or_default();
    let (at, commit, machine) = (text("at"), text("commit"), text("machine"));
    let mut out = format!("\n{at}, commit {commit}: {machine}.\n\n");
    out.push_str(&format!("| {name} | p50 | p99 | slowest | times |\n|---|---|---|---|---|\n"));
    for row in rows(figures) {
        let what = row["what"].as_str().unwrap_or_default();
        out.push_str(&match row["value"].as_str() {
            Some(value) => format!("| {what} | {value} | | | |\n"),
            None => format!(
                "| {what} | {} | {} | {} | {} |\n",
                ms(row, "p50"),
                ms(row, "p99"),
                ms(row, "max"),
                row["count"]
            ),
        });
    }
    out.push('\n');
    out
}

/// The tables of the other benchmarks that have run, in the text of docs/benchmarks.md.
pub(crate) fn with_tables(page: String) -> String {
    NAMED.into_iter().fold(page, |page, name| match read(name) {
        Some(figures) => put_between(&page, name, &table(name, &figures)),
        None => page,
    })
}

/// Writes README's table of speed, if all of its benchmarks have run.
pub(crate) fn write_readme() {
    let path = root().join("README.md");
    let page = fs::read_to_string(&path).expect("read README.md");
    let mut out = String::new();
    for (benchmark, what, name) in SPEED {
        let Some(figures) = read(benchmark) else { return };
        if out.is_empty() {
            let machine = figures["machine"].as_str().unwrap_or_default();
            out = format!("| {machine}, defaults | p50 | p99 |\n|---|---|---|\n");
        }
        let row = rows(&figures).iter().find(|row| row["what"] == what);
        let row = row.unwrap_or_else(|| panic!("{benchmark} has no row \"{what}\""));
        out.push_str(&format!("| {name} | {} | {} |\n", ms(row, "p50"), ms(row, "p99")));
    }
    fs::write(&path, put_between(&page, "speed", &out)).expect("write README.md");
    println!("wrote {}", path.display());
}
