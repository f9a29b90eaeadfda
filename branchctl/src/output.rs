//! Answers as text for people. Pure: the time comes from the caller.

use api::types::{
    Branch, ComputeState, History, Import, ImportState, Network, SettingsOutcome, Status, Usage,
};
use jiff::Timestamp;

/// A table of branches.
pub(crate) fn branches(branches: &[Branch], now: Timestamp) -> String {
    let head = ["NAME", "PARENT", "STATE", "CLIENTS", "SIZE", "OWN", "FREES", "FORKED", "NOTES"]
        .map(str::to_owned);
    let rows = branches.iter().map(|branch| {
        [
            clean(&branch.name),
            branch.parent.as_deref().map_or("-".to_owned(), clean),
            state(branch.state).to_owned(),
            branch.connections.to_string(),
            branch.logical_bytes.map_or("-".to_owned(), size),
            size(branch.own_bytes),
            size(branch.freed_by_delete),
            ago(branch.forked_at, now),
            notes(branch),
        ]
    });
    table(std::iter::once(head).chain(rows).collect())
}

/// One branch, a line per field.
pub(crate) fn branch(branch: &Branch, now: Timestamp) -> String {
    let since = |at: Timestamp| format!("{at:.0} ({})", ago(at, now));
    let mut rows = vec![
        ("name", clean(&branch.name)),
        ("host", clean(&branch.host)),
        ("parent", branch.parent.as_deref().map_or("-".to_owned(), clean)),
        ("state", state(branch.state).to_owned()),
        ("network", network(branch.network).to_owned()),
        ("history", kept(branch.history.as_deref())),
        ("clients", branch.connections.to_string()),
        ("size", branch.logical_bytes.map_or("-".to_owned(), size)),
        ("own", size(branch.own_bytes)),
        ("frees", size(branch.freed_by_delete)),
        ("created", since(branch.created_at)),
        ("forked", since(branch.forked_at)),
        ("position", branch.fork_position.map_or("-".to_owned(), |position| position.to_string())),
        ("timeline", clean(&branch.timeline)),
        ("notes", Some(notes(branch)).filter(|notes| !notes.is_empty()).unwrap_or("-".to_owned())),
    ];
    if let Some(socket) = &branch.socket {
        rows.push(("socket", clean(socket)));
    }
    let mut text = fields(&rows);
    if let Some(failure) = &branch.failure {
        text.push_str("failure:\n");
        for line in failure.lines() {
            text.push_str(&format!("  {}\n", log_line(line)));
        }
        text.push_str(&format!("  `branchctl logs {}` has more\n", clean(&branch.name)));
    }
    text
}

fn network(network: Network) -> &'static str {
    match network {
        Network::None => "none",
        Network::Host => "host",
    }
}

/// How long the past is kept; older servers do not say.
fn kept(history: Option<&str>) -> String {
    match history {
        None => "-".to_owned(),
        Some("0") => "none".to_owned(),
        Some(history) => clean(history),
    }
}

/// Who takes how much of the disk; the rows add up.
pub(crate) fn usage(usage: &Usage) -> String {
    let head = ["NAME", "SIZE", "OWN", "FREES", "NEEDED BY"].map(str::to_owned);
    let branches = usage.branches.iter().map(|branch| {
        let logical = branch.logical_bytes.map_or("-".to_owned(), size);
        [
            clean(&branch.name),
            logical,
            size(branch.own_bytes),
            size(branch.freed_by_delete),
            String::new(),
        ]
    });
    let nameless = usage.nameless.iter().map(|timeline| {
        let needed_by: Vec<String> = timeline.needed_by.iter().map(|name| clean(name)).collect();
        let needed_by = if needed_by.is_empty() {
            "a session or an import".to_owned()
        } else {
            needed_by.join(", ")
        };
        let own = size(timeline.own_bytes);
        [format!("({})", clean(&timeline.timeline)), "-".to_owned(), own, "-".to_owned(), needed_by]
    });
    let row = |name: &str, bytes| {
        [name.to_owned(), "-".to_owned(), size(bytes), "-".to_owned(), String::new()]
    };
    let last = [row("(reserve)", usage.reserve_bytes), row("(total)", usage.total_bytes)];
    table(std::iter::once(head).chain(branches).chain(nameless).chain(last).collect())
}

/// The ranges of a history, oldest first.
pub(crate) fn history(history: &History) -> String {
    let head = ["FROM", "TO", "POSITIONS", "LSNS", "POINTS"].map(str::to_owned);
    let lsn = |lsn: &Option<String>| lsn.as_deref().map_or("?".to_owned(), clean);
    let rows = history.ranges.iter().map(|range| {
        [
            format!("{:.3}", range.from),
            format!("{:.3}", range.to),
            format!("{} to {}", range.from_position, range.to_position),
            format!("{} to {}", lsn(&range.from_lsn), lsn(&range.to_lsn)),
            range.points.to_string(),
        ]
    });
    let ranges = table(std::iter::once(head).chain(rows).collect());
    format!("{ranges}kept for {}\n", span(history.window_s))
}

/// The server's status, a line per field.
pub(crate) fn status(status: &Status) -> String {
    fields(&[
        ("version", clean(&status.version)),
        ("postgres", clean(&status.postgres_version)),
        ("default branch", clean(&status.default_branch)),
        ("branches", format!("{} ({} running)", status.branches, status.running)),
        ("clients", status.connections.to_string()),
        ("store", format!("{} ({} free)", size(status.store_bytes), size(status.free_bytes))),
        ("proxy", clean(&status.proxy_address)),
        ("CA file", status.ca_file.as_deref().map_or("-".to_owned(), clean)),
        ("up", span(status.uptime_s)),
    ])
}

/// What became of settings.
pub(crate) fn settings(name: &str, outcome: &SettingsOutcome) -> String {
    let later: Vec<String> = outcome.at_next_start.iter().map(|name| clean(name)).collect();
    match later.as_slice() {
        [] => format!("{} has the settings\n", clean(name)),
        later => format!("{} gets at its next start: {}\n", clean(name), later.join(", ")),
    }
}

/// An import that did not fail.
pub(crate) fn import(import: &Import) -> String {
    let name = clean(&import.name);
    match import.state {
        ImportState::Done => {
            let notes = import.notes.iter().map(|note| format!("note: {}\n", clean(note)));
            let notes: String = notes.collect();
            format!("{name} imported, {}\n{notes}", size(import.bytes_done))
        }
        ImportState::Running | ImportState::Failed => format!("{name}: {}\n", clean(&import.step)),
    }
}

/// Bytes in the largest unit that leaves at least 1.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    // Above 1023.95 one decimal would print as 1024.0.
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// How long ago something was.
fn ago(at: Timestamp, now: Timestamp) -> String {
    match u64::try_from(now.as_second() - at.as_second()) {
        Ok(0) => "just now".to_owned(),
        Ok(seconds) => format!("{} ago", span(seconds)),
        // The server's clock may be ahead of this one.
        Err(_) => "just now".to_owned(),
    }
}

/// A number of seconds in its largest whole unit.
fn span(seconds: u64) -> String {
    let (count, unit) = match seconds {
        0..60 => (seconds, "second"),
        60..3_600 => (seconds / 60, "minute"),
        3_600..86_400 => (seconds / 3_600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {unit}{plural}")
}

fn state(state: ComputeState) -> &'static str {
    match state {
        ComputeState::Suspended => "suspended",
        ComputeState::Starting => "starting",
        ComputeState::Running => "running",
        ComputeState::Stopping => "stopping",
        ComputeState::Failed => "failed",
    }
}

fn notes(branch: &Branch) -> String {
    let all = [
        (branch.default, "default"),
        (branch.protected, "protected"),
        (branch.scheduled_jobs, "jobs"),
    ];
    let set: Vec<&str> = all.iter().filter(|(set, _)| *set).map(|(_, note)| *note).collect();
    set.join(", ")
}

/// Text that came from elsewhere, without the control characters that could move a terminal's
/// cursor.
fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// A line of Postgres's log, which may be indented by a tab.
pub(crate) fn log_line(line: &str) -> String {
    line.split('\t').map(clean).collect::<Vec<_>>().join("\t")
}

/// Columns as wide as their widest cell, two blanks between, none at a line's end.
fn table<const N: usize>(rows: Vec<[String; N]>) -> String {
    let mut widths = [0; N];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in &rows {
        let cells: Vec<String> =
            row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

fn fields(rows: &[(&str, String)]) -> String {
    table(rows.iter().map(|(name, value)| [format!("{name}:"), value.clone()]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(name: &str, parent: Option<&str>) -> Branch {
        Branch {
            name: name.to_owned(),
            host: "x".to_owned(),
            parent: parent.map(str::to_owned),
            timeline: "00000001".to_owned(),
            fork_position: None,
            created_at: Timestamp::UNIX_EPOCH,
            forked_at: Timestamp::UNIX_EPOCH,
            default: parent.is_none(),
            protected: parent.is_none(),
            network: Network::None,
            scheduled_jobs: false,
            history: Some("1h".to_owned()),
            state: ComputeState::Running,
            failure: None,
            socket: None,
            connections: 3,
            logical_bytes: parent.map(|_| 31 << 20),
            own_bytes: 1000,
            freed_by_delete: 1000,
        }
    }

    #[test]
    fn a_table_lines_up() {
        let now = Timestamp::from_second(300).unwrap();
        let text = branches(&[sample("main", None), sample("feature/login", Some("main"))], now);
        let expected = "\
NAME           PARENT  STATE    CLIENTS  SIZE      OWN     FREES   FORKED         NOTES
main           -       running  3        -         1000 B  1000 B  5 minutes ago  default, protected
feature/login  main    running  3        31.0 MiB  1000 B  1000 B  5 minutes ago
";
        assert_eq!(text, expected);
    }

    #[test]
    fn a_failure_is_shown_line_by_line_and_cannot_move_the_cursor() {
        let mut failed = sample("x", Some("main"));
        failed.failure = Some("FATAL: one\nHINT:\x1b[2J two\n\tthree".to_owned());
        let text = branch(&failed, Timestamp::UNIX_EPOCH);
        assert!(text.contains("created:   1970-01-01T00:00:00Z (just now)\n"), "{text}");
        assert!(text.contains("history:   1h\n"), "{text}");
        for (history, shown) in [(Some("0"), "none"), (None, "-"), (Some("\x1b"), "\u{fffd}")] {
            assert_eq!(kept(history), shown);
        }
        let failure = "failure:\n  FATAL: one\n  HINT:\u{fffd}[2J two\n  \tthree\n  \
                       `branchctl logs x` has more\n";
        assert!(text.ends_with(failure), "{text}");
    }

    #[test]
    fn sizes_and_spans_are_human() {
        for (bytes, expected) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            ((1 << 20) - 1, "1.0 MiB"),
            (1 << 30, "1.0 GiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(size(bytes), expected);
        }
        for (seconds, expected) in [
            (1, "1 second"),
            (59, "59 seconds"),
            (60, "1 minute"),
            (7_200, "2 hours"),
            (86_400, "1 day"),
        ] {
            assert_eq!(span(seconds), expected);
        }
        let later = Timestamp::from_second(9).unwrap();
        assert_eq!(ago(later, Timestamp::UNIX_EPOCH), "just now");
    }
}
