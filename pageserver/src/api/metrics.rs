//! Counters, gauges and histograms, and their Prometheus text form. Knows nothing of HTTP.
//!
//! Any part of the server asks once for a handle by name and labels and keeps it; updating a handle
//! is one atomic operation. Asking again for the same gives the same handle. Label values must come
//! from a small fixed set (a route, a state), never from user input such as branch names: each
//! distinct set of labels lives for ever.

use crate::locks::lock;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Upper bounds of a histogram's buckets in microseconds: 1 ms to 60 s, since a branch takes
/// milliseconds, a start of Postgres tens of them, and recovery seconds.
const BUCKETS_US: [u64; 14] = [
    1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
    5_000_000, 10_000_000, 60_000_000,
];

/// A number that only grows.
#[derive(Clone, Debug, Default)]
pub struct Counter(Arc<AtomicU64>);

impl Counter {
    /// Takes the value of a count that is kept elsewhere.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// Counts `n` more.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }
}

/// A number that comes and goes.
#[derive(Clone, Debug, Default)]
pub struct Gauge(Arc<AtomicU64>);

impl Gauge {
    /// Replaces the value.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }
}

/// A distribution of durations.
#[derive(Clone, Debug, Default)]
pub struct Histogram(Arc<Buckets>);

#[derive(Debug, Default)]
struct Buckets {
    /// Observations per bucket, not cumulated; the last holds what is above every bound.
    counts: [AtomicU64; BUCKETS_US.len() + 1],
    sum_us: AtomicU64,
}

impl Histogram {
    /// Counts one duration.
    pub fn observe(&self, duration: Duration) {
        let us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let bucket = BUCKETS_US.partition_point(|bound| *bound < us);
        self.0.counts[bucket].fetch_add(1, Ordering::Relaxed);
        self.0.sum_us.fetch_add(us, Ordering::Relaxed);
    }
}

#[derive(Clone, Debug)]
enum Series {
    Counter(Counter),
    Gauge(Gauge),
    Histogram(Histogram),
}

impl Series {
    fn kind(&self) -> &'static str {
        match self {
            Self::Counter(_) => "counter",
            Self::Gauge(_) => "gauge",
            Self::Histogram(_) => "histogram",
        }
    }
}

/// All series of one name. The first series decides the kind.
#[derive(Debug)]
struct Family {
    help: &'static str,
    /// By label text, such as `route="/v1/status"`.
    series: BTreeMap<String, Series>,
}

/// The registry of everything that is measured.
#[derive(Debug, Default)]
pub struct Metrics {
    families: Mutex<BTreeMap<&'static str, Family>>,
}

impl Metrics {
    /// An empty registry.
    pub fn new() -> Self {
        Self::default()
    }

    /// The counter of that name and those labels. The name must end in `_total`.
    ///
    /// # Panics
    /// When the name was registered as another kind of metric.
    pub fn counter(
        &self,
        name: &'static str,
        help: &'static str,
        labels: &[(&str, &str)],
    ) -> Counter {
        assert!(name.ends_with("_total"), "counter {name} does not end in _total");
        match self.series(name, help, labels, || Series::Counter(Counter::default())) {
            Series::Counter(counter) => counter,
            other => panic!("metric {name} is a {}, not a counter", other.kind()),
        }
    }

    /// The gauge of that name and those labels.
    ///
    /// # Panics
    /// When the name was registered as another kind of metric.
    pub fn gauge(&self, name: &'static str, help: &'static str, labels: &[(&str, &str)]) -> Gauge {
        match self.series(name, help, labels, || Series::Gauge(Gauge::default())) {
            Series::Gauge(gauge) => gauge,
            other => panic!("metric {name} is a {}, not a gauge", other.kind()),
        }
    }

    /// The histogram of durations of that name and those labels. The name must end in `_seconds`.
    ///
    /// # Panics
    /// When the name was registered as another kind of metric.
    pub fn histogram(
        &self,
        name: &'static str,
        help: &'static str,
        labels: &[(&str, &str)],
    ) -> Histogram {
        assert!(name.ends_with("_seconds"), "histogram {name} does not end in _seconds");
        match self.series(name, help, labels, || Series::Histogram(Histogram::default())) {
            Series::Histogram(histogram) => histogram,
            other => panic!("metric {name} is a {}, not a histogram", other.kind()),
        }
    }

    fn series(
        &self,
        name: &'static str,
        help: &'static str,
        labels: &[(&str, &str)],
        new: impl FnOnce() -> Series,
    ) -> Series {
        let labels: Vec<String> =
            labels.iter().map(|(key, value)| format!("{key}=\"{}\"", escape(value))).collect();
        let mut families = lock(&self.families);
        let family =
            families.entry(name).or_insert_with(|| Family { help, series: BTreeMap::new() });
        family.series.entry(labels.join(",")).or_insert_with(new).clone()
    }

    /// Everything in the Prometheus text format, version 0.0.4.
    pub fn render(&self) -> String {
        let mut out = String::new();
        for (name, family) in lock(&self.families).iter() {
            let Some(first) = family.series.values().next() else {
                continue;
            };
            put(&mut out, format_args!("# HELP {name} {}", family.help));
            put(&mut out, format_args!("# TYPE {name} {}", first.kind()));
            for (labels, series) in &family.series {
                match series {
                    Series::Counter(Counter(value)) | Series::Gauge(Gauge(value)) => {
                        let braces =
                            if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
                        put(
                            &mut out,
                            format_args!("{name}{braces} {}", value.load(Ordering::Relaxed)),
                        );
                    }
                    Series::Histogram(histogram) => {
                        render_histogram(&mut out, name, labels, histogram)
                    }
                }
            }
        }
        out
    }
}

fn render_histogram(out: &mut String, name: &str, labels: &str, histogram: &Histogram) {
    let comma = if labels.is_empty() { "" } else { "," };
    let braces = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
    let mut total = 0;
    for (index, count) in histogram.0.counts.iter().enumerate() {
        total += count.load(Ordering::Relaxed);
        let bound = BUCKETS_US.get(index).map_or("+Inf".to_owned(), |us| seconds(*us));
        put(out, format_args!("{name}_bucket{{{labels}{comma}le=\"{bound}\"}} {total}"));
    }
    put(
        out,
        format_args!("{name}_sum{braces} {}", seconds(histogram.0.sum_us.load(Ordering::Relaxed))),
    );
    // The sum of the buckets just printed, not a counter of its own, so that a scrape always adds
    // up.
    put(out, format_args!("{name}_count{braces} {total}"));
}

/// Microseconds as decimal seconds, exactly.
fn seconds(us: u64) -> String {
    let text = format!("{}.{:06}", us / 1_000_000, us % 1_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Writing to a string cannot fail.
fn put(out: &mut String, line: std::fmt::Arguments<'_>) {
    let _ = out.write_fmt(line);
    out.push('\n');
}

fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renders_the_text_format() {
        let metrics = Metrics::new();
        metrics.counter("a_total", "As.", &[("route", "/x\"y")]).add(2);
        metrics.counter("a_total", "As.", &[("route", "/x\"y")]).add(1);
        metrics.gauge("b_bytes", "Bs.", &[]).set(7);
        let expected = "# HELP a_total As.\n# TYPE a_total counter\na_total{route=\"/x\\\"y\"} 3\n\
                        # HELP b_bytes Bs.\n# TYPE b_bytes gauge\nb_bytes 7\n";
        assert_eq!(metrics.render(), expected);
    }

    #[test]
    fn a_bucket_includes_its_bound_and_all_below() {
        let metrics = Metrics::new();
        let histogram = metrics.histogram("t_seconds", "Ts.", &[("k", "v")]);
        for us in [1_000, 1_001, 61_000_000] {
            histogram.observe(Duration::from_micros(us));
        }
        let text = metrics.render();
        for line in [
            "t_seconds_bucket{k=\"v\",le=\"0.001\"} 1",
            "t_seconds_bucket{k=\"v\",le=\"0.0025\"} 2",
            "t_seconds_bucket{k=\"v\",le=\"60\"} 2",
            "t_seconds_bucket{k=\"v\",le=\"+Inf\"} 3",
            "t_seconds_sum{k=\"v\"} 61.002001",
            "t_seconds_count{k=\"v\"} 3",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    #[should_panic(expected = "metric a_total is a counter, not a gauge")]
    fn one_name_has_one_kind() {
        let metrics = Metrics::new();
        metrics.counter("a_total", "As.", &[]);
        metrics.gauge("a_total", "As.", &[]);
    }
}
