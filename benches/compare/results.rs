//! Results that were written before: what is in them, and in which order it is shown.

use crate::config::SECTIONS;
use crate::report::path;
use coppice::sides::median;
use serde_json::{Map, Value};

/// Results as they were written.
pub(crate) struct Results(Value);

/// A measure, and what it is called where it is shown.
pub(crate) struct Row {
    /// What the keys of its ratios begin with.
    pub(crate) key: String,
    /// Its name, in Markdown.
    pub(crate) name: String,
}

/// Measures that are shown together.
pub(crate) struct Table {
    /// What they have in common.
    pub(crate) heading: &'static str,
    /// Who is compared with.
    pub(crate) peers: &'static [&'static str],
    /// One for each measure.
    pub(crate) rows: Vec<Row>,
}

impl Results {
    /// The newest.
    pub(crate) fn read() -> Self {
        let path = path();
        let text = std::fs::read_to_string(&path);
        let text = text
            .unwrap_or_else(|error| panic!("{}: {error}: run make bench first", path.display()));
        Self(serde_json::from_str(&text).expect("the results are JSON"))
    }

    /// Fails unless they are of a whole run in full size, which alone is published.
    pub(crate) fn require_whole(&self) {
        assert!(
            self.0["quick"] == false,
            "these are results of COPPICE_BENCH_QUICK: run make bench"
        );
        let skipped = &self.0["skipped"];
        assert!(skipped.as_object().is_some_and(Map::is_empty), "something was skipped: {skipped}");
        let figures = self.0["figures"].as_object();
        for section in SECTIONS {
            let key = match section {
                "branches" => "create",
                "cold" => "scan.cold",
                "select" => "select.cached",
                other => other,
            };
            let there = figures.is_some_and(|all| all.keys().any(|known| known.starts_with(key)));
            assert!(
                there,
                "section {section} is missing: run make bench without COPPICE_BENCH_ONLY"
            );
        }
    }

    /// What stands under a name of the outermost object.
    pub(crate) fn part(&self, name: &str) -> &Value {
        &self.0[name]
    }

    /// The median of a side.
    pub(crate) fn figure(&self, key: &str, side: &str) -> Option<f64> {
        let values = self.0["figures"][key]["values"][side].as_array()?;
        let values: Vec<f64> = values.iter().filter_map(Value::as_f64).collect();
        (!values.is_empty()).then(|| median(&values))
    }

    /// How fast a side is, whether that was measured as a rate or as a time.
    pub(crate) fn speed(&self, key: &str, side: &str) -> Option<f64> {
        let figure = self.figure(key, side)?;
        Some(if self.0["figures"][key]["better"] == "less" { 1.0 / figure } else { figure })
    }

    /// Unit of a measure.
    pub(crate) fn unit(&self, key: &str) -> &str {
        self.0["figures"][key]["unit"].as_str().unwrap_or_default()
    }

    /// Ours over a peer's, larger is better.
    pub(crate) fn ratio(&self, key: &str, peer: &str) -> Option<f64> {
        self.0["ratios"][format!("{key}.{peer}")].as_f64()
    }

    /// Postgres at work, branches, their bytes, and the proxy.
    pub(crate) fn tables(&self) -> [Table; 4] {
        let peers = &["native", "btrfs", "xfs"];
        let counts = self.0["sizes"]["storage_branches"].as_array().cloned().unwrap_or_default();
        let named = |count: &Value| {
            if *count == 1 { "1 branch".to_owned() } else { format!("{count} branches") }
        };
        let storage = counts.iter().map(|count| row(format!("storage.{count}"), named(count)));
        let branches = [
            row("create", "create"),
            row("first_row", "create to first row"),
            row("wake", "wake to first row"),
        ];
        let proxy = [
            row("proxy.select.1", "rows by key, 1 client"),
            row("proxy.select.4", "rows by key, 4 clients"),
            row("proxy.tpcb.1", "TPC-B, 1 client"),
            row("proxy.tpcb.4", "TPC-B, 4 clients"),
            row("proxy.connect", "connections, 4 clients"),
            row("proxy.tcp.select.1", "rows by key, 1 client, over TCP"),
            row("proxy.tcp.select.4", "rows by key, 4 clients, over TCP"),
        ];
        let heading = "Disk taken when 1% of the pages of each branch are changed";
        [
            Table { heading: "Postgres at work", peers, rows: self.work() },
            Table { heading: "Branches", peers, rows: branches.into() },
            Table { heading, peers: &["btrfs", "xfs"], rows: storage.collect() },
            Table { heading: "The proxy", peers: &["direct", "pgbouncer"], rows: proxy.into() },
        ]
    }

    fn work(&self) -> Vec<Row> {
        let sizes = &self.0["sizes"];
        let rows = sizes["rows"].as_f64().unwrap_or(0.0);
        let million = |rows: f64| format!("{} million", rows / 1e6);
        let (copied, made) = (million(rows), million(rows * 1.5));
        vec![
            row("tpcb.1", "TPC-B, 1 client"),
            row("tpcb.4", "TPC-B, 4 clients"),
            row("tpcb.16", "TPC-B, 16 clients"),
            row("select.cached", "rows by key, cached, 4 clients"),
            row("select.cold", "rows by key, cold, 1 client"),
            row("scan.cold", "sequential scan, cold"),
            row("bulk.copy", format!("`COPY`, {copied} rows")),
            row("bulk.ctas", format!("`CREATE TABLE AS`, {made} rows")),
            row("bulk.index", format!("`CREATE INDEX`, {made} rows")),
            row("checkpoint", format!("checkpoint, {} MB dirty", sizes["dirty_mb"])),
        ]
    }
}

/// What a peer is called in text.
pub(crate) fn peer_name(peer: &str) -> &str {
    match peer {
        "xfs" => "XFS",
        "pgbouncer" => "PgBouncer",
        "direct" => "the socket",
        other => other,
    }
}

fn row(key: impl Into<String>, name: impl Into<String>) -> Row {
    Row { key: key.into(), name: name.into() }
}
