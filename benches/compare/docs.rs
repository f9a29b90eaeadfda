//! The published form of the results: tables in docs/benchmarks.md, between two marks, and plots
//! beside it.

use crate::report::{path, root, short};
use crate::results::{Results, Table, peer_name};
use crate::{charts, pages};
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

const BEGIN: &str = "<!-- from `make bench-docs`: -->";
const END: &str = "<!-- until here -->";
const PAGE: &str = "benchmarks.md";

/// Writes tables and plots of the newest results into docs/, or into the directory that
/// `COPPICE_BENCH_DOCS` names, and README's table. What has not run stays as it is.
///
/// # Panics
/// If the results are none to publish.
pub(crate) fn write() {
    let docs = root().join("docs");
    let directory =
        std::env::var_os("COPPICE_BENCH_DOCS").map_or_else(|| docs.clone(), PathBuf::from);
    fs::create_dir_all(&directory).expect("make the directory");
    let page = fs::read_to_string(docs.join(PAGE)).expect("read the page");
    let page = if path().exists() {
        let results = Results::read();
        if directory == docs {
            results.require_whole();
        }
        with_comparison(&page, &results, &directory)
    } else {
        println!("there are no results of make bench: their part of the page stays");
        page
    };
    put(&directory.join(PAGE), &pages::with_tables(page));
    if directory == docs {
        pages::write_readme();
    }
}

/// The page with the tables of the comparison, whose plots go into `directory`.
fn with_comparison(page: &str, results: &Results, directory: &Path) -> String {
    let (before, rest) = page.split_once(BEGIN).expect("the mark where the tables begin");
    let (_, after) = rest.split_once(END).expect("the mark where the tables end");
    let charts = charts::all(results);
    let mut tables = format!("{}\n", provenance(results));
    for (table, (plot, chart)) in results.tables().iter().zip(&charts) {
        show(&mut tables, results, table);
        line(&mut tables, format_args!("![{}]({plot})", chart.title));
        put(&directory.join(plot), &chart.to_svg());
    }
    format!("{before}{BEGIN}\n\n{tables}\n{END}{after}")
}

fn put(path: &Path, text: &str) {
    fs::write(path, text).unwrap_or_else(|error| panic!("write {}: {error}", path.display()));
    println!("wrote {}", path.display());
}

/// A table of our figures and of the ratios.
fn show(out: &mut String, results: &Results, Table { heading, peers, rows }: &Table) {
    let vs: Vec<String> = peers.iter().map(|peer| format!("over {}", peer_name(peer))).collect();
    line(out, format_args!("\n### {heading}\n\n| | ours | {} |", vs.join(" | ")));
    line(out, format_args!("|---|---{}|", "|---".repeat(peers.len())));
    for row in rows {
        let ours = if row.key.starts_with("proxy.") { "proxy" } else { "coppice" };
        let Some(ours) = results.figure(&row.key, ours) else { continue };
        let ratio = |peer: &&str| {
            results
                .ratio(&row.key, peer)
                .map_or_else(|| "–".to_owned(), |ratio| format!("{ratio:.2}"))
        };
        let ratios: Vec<String> = peers.iter().map(ratio).collect();
        let (name, unit) = (&row.name, results.unit(&row.key));
        line(out, format_args!("| {name} | {} {unit} | {} |", short(ours), ratios.join(" | ")));
        if row.key == "create" {
            let p99 =
                results.part("absolute")["create_p99_ms"].as_f64().map_or_else(String::new, short);
            line(
                out,
                format_args!(
                    "| create, 99 of 100 | {p99} ms | {} |",
                    vec!["–"; peers.len()].join(" | ")
                ),
            );
        }
    }
    out.push('\n');
}

/// What was run, when, and on what.
fn provenance(results: &Results) -> String {
    let machine = results.part("machine");
    let text = |name: &str| machine[name].as_str().unwrap_or("none").to_owned();
    let sizes = results.part("sizes");
    let lines = [
        format!(
            "`{}` on {}, commit {}, in {} minutes: pgbench scale {}, {} rounds of {} s for TPC-B \
             and {} s for other loads.",
            results.part("command").as_str().unwrap_or("make bench"),
            results.part("at").as_str().unwrap_or_default(),
            text("commit"),
            results.part("seconds").as_u64().unwrap_or(0).div_ceil(60),
            sizes["scale"],
            sizes["rounds"],
            sizes["tpcb_seconds"],
            sizes["seconds"],
        ),
        format!(
            "The machine: {} cores ({}), {} GiB of memory, {}, Linux {}, {} on which a page is \
             durable in {:.2} ms; PostgreSQL {}, {}, {}, {}.",
            machine["cores"],
            text("cpu"),
            machine["memory_gib"],
            text("system"),
            text("kernel"),
            text("file_system"),
            machine["sync_ms"].as_f64().unwrap_or(0.0),
            text("postgres"),
            text("btrfs"),
            text("xfs"),
            text("pgbouncer"),
        ),
        "Ratios are ours over theirs, larger is better for us: of rates, and of their time or size \
         to ours."
            .to_owned(),
    ];
    lines.map(|line| wrapped(&line)).join("\n")
}

/// Text broken into lines of at most 100 columns.
fn wrapped(text: &str) -> String {
    let (mut wrapped, mut columns) = (String::new(), 0);
    for word in text.split(' ') {
        let width = word.chars().count();
        let goes_on = columns > 0 && columns + 1 + width <= 100;
        if columns > 0 {
            wrapped.push(if goes_on { ' ' } else { '\n' });
        }
        wrapped.push_str(word);
        columns = if goes_on { columns + 1 + width } else { width };
    }
    wrapped
}

/// Writing to a string cannot fail.
fn line(out: &mut String, line: std::fmt::Arguments<'_>) {
    let _ = out.write_fmt(line);
    out.push('\n');
}
