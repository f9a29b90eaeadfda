//! What was measured: as a table while it goes on, and as JSON in the end.

use crate::config::{Config, given};
use crate::systems::Skipped;
use coppice::sides::{median, percentile};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

/// Which way a figure is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Better {
    /// As a rate.
    More,
    /// As a time or a size.
    Less,
}

/// One thing that was measured on all sides.
#[derive(Clone, Debug)]
pub(crate) struct Measure {
    /// What the keys of its ratios begin with, such as `tpcb.4`.
    pub(crate) key: String,
    /// What was done, as a command or a statement.
    pub(crate) what: String,
    /// Unit of the figures.
    pub(crate) unit: &'static str,
    /// Which way they are better.
    pub(crate) better: Better,
    /// By name of the side, ours first.
    pub(crate) values: Vec<(String, Vec<f64>)>,
}

impl Measure {
    /// Ours over the others, larger is better, each by the key of the ratio.
    fn ratios(&self) -> Vec<(String, f64)> {
        let Some(((_, ours), peers)) = self.values.split_first() else { return Vec::new() };
        let ratio = |theirs: &[f64]| match self.better {
            Better::More => median(ours) / median(theirs),
            Better::Less => median(theirs) / median(ours),
        };
        peers.iter().map(|(name, theirs)| (format!("{}.{name}", self.key), ratio(theirs))).collect()
    }

    fn row(&self) -> String {
        let ratios: BTreeMap<String, f64> = self.ratios().into_iter().collect();
        let cell = |(name, values): &(String, Vec<f64>)| {
            let figure = format!("{name} {}", short(median(values)));
            match ratios.get(&format!("{}.{name}", self.key)) {
                Some(ratio) => format!("{figure:<17} {ratio:>6.2}"),
                None => format!("{figure} {}", self.unit),
            }
        };
        let cells: Vec<String> = self.values.iter().map(cell).collect();
        let row = format!("{:<20} {:<24} {}", self.key, cells[0], cells[1..].join("   "));
        row.trim_end().to_owned()
    }

    fn to_json(&self) -> Value {
        let values: Map<String, Value> =
            self.values.iter().map(|(name, values)| (name.clone(), json!(values))).collect();
        let better = if self.better == Better::More { "more" } else { "less" };
        json!({"what": self.what, "unit": self.unit, "better": better, "values": values})
    }
}

/// With three digits that count, or all before the point.
pub(crate) fn short(value: f64) -> String {
    if value >= 1e6 {
        return format!("{:.2}M", value / 1e6);
    }
    let digits = if value >= 100.0 { 0 } else { usize::from(value < 10.0) + 1 };
    format!("{value:.digits$}")
}

/// Everything so far.
pub(crate) struct Report {
    began: Instant,
    at: String,
    machine: Value,
    config: Config,
    measures: Vec<Measure>,
    absolute: Map<String, Value>,
    skipped: BTreeMap<String, String>,
}

impl Report {
    /// Nothing yet.
    pub(crate) fn new(config: &Config, machine: Value) -> Self {
        let at = jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M UTC").to_string();
        let (measures, absolute, skipped) = Default::default();
        Self {
            began: Instant::now(),
            at,
            machine,
            config: config.clone(),
            measures,
            absolute,
            skipped,
        }
    }

    /// Takes down what this machine cannot, and why.
    pub(crate) fn skip(&mut self, skipped: Skipped) {
        self.skipped.extend(skipped);
    }

    /// Begins a part of the table.
    pub(crate) fn section(&self, title: &str) {
        println!("\n[{}] {title}", self.clock());
    }

    /// Adds a measure to the table.
    pub(crate) fn add(&mut self, measure: Measure) {
        assert!(
            !measure.values.is_empty()
                && measure.values.iter().all(|(_, values)| !values.is_empty())
        );
        println!("{}", measure.row());
        self.measures.push(measure);
    }

    /// Adds our own figure of a time, by percentiles.
    pub(crate) fn add_absolute(&mut self, name: &str, values: &[f64], percents: &[usize]) {
        for percent in percents {
            let value = percentile(values, *percent);
            println!("{name} p{percent} {} ms (n={})", short(value), values.len());
            self.absolute.insert(format!("{name}_p{percent}_ms"), json!(value));
        }
    }

    /// Minutes and seconds since the beginning.
    pub(crate) fn clock(&self) -> String {
        let seconds = self.began.elapsed().as_secs();
        format!("{:>2}:{:02}", seconds / 60, seconds % 60)
    }

    /// Writes the results.
    pub(crate) fn finish(&self) {
        let ratios: Map<String, Value> = self
            .measures
            .iter()
            .flat_map(Measure::ratios)
            .map(|(key, ratio)| (key, json!((ratio * 1e4).round() / 1e4)))
            .collect();
        let figures: Map<String, Value> =
            self.measures.iter().map(|measure| (measure.key.clone(), measure.to_json())).collect();
        let command = [given().as_str(), "make bench"].join(" ");
        let results = json!({
            "quick": self.config.quick,
            "at": self.at,
            "seconds": self.began.elapsed().as_secs(),
            "machine": self.machine,
            "command": command.trim(),
            "sizes": self.config.to_json(),
            "skipped": self.skipped,
            "figures": figures,
            "absolute": self.absolute,
            "ratios": ratios,
        });
        let path = path();
        std::fs::create_dir_all(path.parent().expect("a directory"))
            .expect("make the results' directory");
        let text = serde_json::to_string_pretty(&results).expect("encode the results");
        std::fs::write(&path, text + "\n").expect("write the results");
        for (name, why) in &self.skipped {
            println!("!!! SKIPPED {name}: {why}");
        }
        let tiny =
            if self.config.quick { "; of tiny sizes: they say nothing of speed" } else { "" };
        println!("\n[{}] results in {}{tiny}", self.clock(), path.display());
    }
}

/// Where the results are.
pub(crate) fn path() -> PathBuf {
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    target.join("bench/results.json")
}

/// The directory of the project.
pub(crate) fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}
