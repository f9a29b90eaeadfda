//! Settings of an import's source that its copy keeps, and those that are made to fit this machine.
//!
//! A source that keeps its configuration outside the data directory, as Debian does, does not send
//! it along. Settings decide what a query means: its time zone, its search path, parameters of the
//! application's own. So the copy keeps all that a file or the command line of the source set,
//! except those that belong to the source's machine and those that every branch is forced to have.

use crate::compute::SettingsChange;
use crate::compute::settings::forced_names;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt::Write;

/// Longest text of settings that a source may have.
const MAX_BYTES: usize = 1 << 20;
/// Settings that are about the machine of the source: its files, addresses, log and memory.
const OF_THE_MACHINE: [&str; 22] = [
    "bonjour",
    "bonjour_name",
    "cluster_name",
    "data_directory_mode",
    "dynamic_shared_memory_type",
    "event_source",
    "huge_page_size",
    "log_directory",
    "log_file_mode",
    "log_filename",
    "log_rotation_age",
    "log_rotation_size",
    "log_truncate_on_rotation",
    "oom_score_adj",
    "promote_trigger_file",
    "shared_memory_type",
    "standby_slot_names",
    "stats_temp_directory",
    "temp_tablespaces",
    "update_process_title",
    "vacuum_defer_cleanup_age",
    "wal_sync_method",
];
/// The same, by how their names begin.
const BEGINNINGS: [&str; 7] =
    ["archive_", "krb_", "recovery_", "ssl", "syslog_", "tcp_", "unix_socket_"];

/// Settings of memory, each of which may take one part in [`SHARE`] of what a branch has.
const MEMORY: [&str; 8] = [
    "autovacuum_work_mem",
    "logical_decoding_work_mem",
    "maintenance_work_mem",
    "min_dynamic_shared_memory",
    "shared_buffers",
    "temp_buffers",
    "wal_buffers",
    "work_mem",
];
const SHARE: i64 = 4;

/// The settings of a source, as it tells them.
#[derive(Debug, Default, Deserialize)]
pub(super) struct SourceSettings {
    /// Those that a file or the command line set, by name.
    pub(super) kept: BTreeMap<String, String>,
    /// The memory that settings stand for, in bytes.
    memory: BTreeMap<String, i64>,
    /// `huge_pages`.
    huge_pages: Option<String>,
    /// Whether the role sees settings that only some roles may see.
    sees_all: bool,
    /// Whether the role may read the configuration files, which alone have parameters of the
    /// application's own.
    pub(super) reads_files: bool,
}

impl SourceSettings {
    /// The configuration file of a copy that came without one.
    pub(super) fn file(&self, major: u32) -> String {
        let forced = forced_names(major);
        let is_kept = |name: &str| {
            !forced.contains(&name)
                && !OF_THE_MACHINE.contains(&name)
                && !BEGINNINGS.iter().any(|beginning| name.starts_with(beginning))
        };
        let mut text = String::from(
            "# The source keeps its configuration elsewhere; these are settings it ran with.\n",
        );
        for (name, value) in self.kept.iter().filter(|(name, _)| is_kept(name)) {
            // Writing to a string cannot fail.
            let _written = writeln!(text, "{name} = '{}'", quoted(value));
            if text.len() > MAX_BYTES {
                break;
            }
        }
        text
    }

    /// What was left out of that file, and what lets the next import have it.
    pub(super) fn left_out(&self, role: &str, database: &str) -> Vec<String> {
        let role = role.replace('"', "\"\"");
        let mut notes = Vec::new();
        if !self.sees_all {
            notes.push(format!(
                "settings that only some roles see, such as shared_preload_libraries, could not be \
                 read; GRANT pg_read_all_settings TO \"{role}\" at the source lets the next import \
                 have them"
            ));
        }
        if !self.reads_files {
            notes.push(format!(
                "parameters of your own, such as app.tenant, could not be read from the source's \
                 configuration; GRANT EXECUTE ON FUNCTION pg_catalog.pg_show_all_file_settings() \
                 TO \"{role}\" in database {database} of the source lets the next import have them"
            ));
        }
        notes
    }

    /// What has to be less than at the source for the copy to start beside other branches, with a
    /// sentence for each. A branch has so many bytes of memory.
    pub(super) fn fitted(&self, memory_bytes: u64) -> (SettingsChange, Vec<String>) {
        let (mut change, mut notes) = (SettingsChange::default(), Vec::new());
        let memory = i64::try_from(memory_bytes).unwrap_or(i64::MAX);
        let most = memory / SHARE;
        for name in MEMORY {
            let Some(bytes) = self.memory.get(name).filter(|bytes| **bytes > most) else {
                continue;
            };
            let here = format!("{}kB", most / 1024);
            notes.push(format!(
                "{name} is {here} and not {}kB as at the source: a branch has {} MiB of memory \
                 here",
                bytes / 1024,
                memory >> 20
            ));
            change.set.insert(name.to_owned(), here);
        }
        if self.huge_pages.as_deref() == Some("on") {
            notes.push("huge_pages is try and not on as at the source".to_owned());
            change.set.insert("huge_pages".to_owned(), "try".to_owned());
        }
        (change, notes)
    }
}

/// A value between the quotes of a configuration file (PostgreSQL manual, 20.1.2).
fn quoted(value: &str) -> String {
    value.replace('\\', r"\\").replace('\'', "''").replace('\n', r"\n").replace('\r', r"\r")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_the_application_are_kept_and_those_of_the_machine_are_not() {
        let kept = [
            ("timezone", "Asia/Tokyo"),
            ("search_path", "\"$user\", app"),
            ("app.tenant", r"it's C:\new"),
            ("wal_level", "logical"),
            ("port", "5433"),
            ("ssl_cert_file", "/etc/ssl/x.pem"),
            ("archive_command", "rm -rf /"),
            ("log_directory", "/var/log"),
            ("config_file", "/etc/postgresql/15/main/postgresql.conf"),
            ("primary_conninfo", "host=x"),
        ];
        let kept = kept.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let text = SourceSettings { kept, ..SourceSettings::default() }.file(15);
        let lines: Vec<_> = text.lines().skip(1).collect();
        assert_eq!(
            lines,
            [
                r"app.tenant = 'it''s C:\\new'",
                "search_path = '\"$user\", app'",
                "timezone = 'Asia/Tokyo'",
                "wal_level = 'logical'",
            ]
        );
    }

    #[test]
    fn memory_is_made_to_fit() {
        let memory = [("shared_buffers", 40 << 30), ("work_mem", 4 << 20), ("wal_buffers", -8192)];
        let settings = SourceSettings {
            memory: memory.map(|(name, bytes)| (name.to_owned(), bytes)).into(),
            huge_pages: Some("on".to_owned()),
            ..SourceSettings::default()
        };
        let (change, notes) = settings.fitted(8 << 30);
        assert_eq!(change.set["shared_buffers"], "2097152kB");
        assert_eq!(change.set["huge_pages"], "try");
        assert_eq!((change.set.len(), notes.len()), (2, 2));
        assert!(notes[0].contains("41943040kB") && notes[0].contains("8192 MiB"), "{notes:?}");
        let (change, notes) = SourceSettings::default().fitted(1 << 30);
        assert!(change.set.is_empty() && notes.is_empty());
    }

    #[test]
    fn what_could_not_be_read_comes_with_the_grant() {
        let notes = SourceSettings::default().left_out("a\"b", "shop");
        assert_eq!(notes.len(), 2);
        assert!(notes[0].contains("GRANT pg_read_all_settings TO \"a\"\"b\""), "{notes:?}");
    }
}
