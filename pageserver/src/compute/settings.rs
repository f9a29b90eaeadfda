//! What a branch may not inherit: settings forced on the command line, and the files that replace
//! copied ones.
//!
//! A data directory can be a copy of a production cluster, with that cluster's configuration. On
//! the command line a setting wins over `postgresql.conf` and `ALTER SYSTEM`, so a branch can never
//! write to production's archive, slots, standbys or subscriptions, run its scheduled jobs, or open
//! a port. All other settings stay the branch's own.

use crate::error::{Error, Result};
use crate::storage::page::TimelineId;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Name of the socket file in a compute's socket directory: the port is always Postgres's default
/// one.
pub const SOCKET_FILE: &str = ".s.PGSQL.5432";
/// Name of the file beside it with the number of the process. Nobody reads it, but a copied
/// configuration may ask for one elsewhere, and Postgres complains about an empty path.
pub const PID_FILE: &str = "postgres.pid";

/// Every connection gives a password of the branch's own roles. All of them come through a Unix
/// socket from the same process (the proxy), so a rule by operating-system user would let every
/// client in. For a role with a SCRAM secret, `md5` means SCRAM; it lets in the roles of an
/// imported cluster that have only an MD5 one (PostgreSQL manual, 21.5).
const HBA: &str = "# Written by the Coppice server at every start; changes are lost.\n\
                   local all all md5\n\
                   local replication all md5\n";
const IDENT: &str = "# Written by the Coppice server at every start; changes are lost.\n";
/// For clusters that keep their configuration elsewhere (Debian in /etc); Postgres does not start
/// without the file.
const CONFIG: &str =
    "# Used where the data directory has no postgresql.conf; ALTER SYSTEM works as usual.\n";

/// The configuration files that all computes share, outside any data directory.
#[derive(Clone, Debug)]
pub struct ManagedFiles {
    directory: PathBuf,
}

impl ManagedFiles {
    /// Writes the files into `directory`, which is made readable for the user that Postgres runs
    /// as.
    pub fn write(directory: PathBuf) -> Result<Self> {
        use std::os::unix::fs::PermissionsExt;
        let make = || -> std::io::Result<()> {
            std::fs::create_dir_all(&directory)?;
            std::fs::set_permissions(&directory, PermissionsExt::from_mode(0o755))?;
            for (name, text) in
                [("pg_hba.conf", HBA), ("pg_ident.conf", IDENT), ("postgresql.conf", CONFIG)]
            {
                std::fs::write(directory.join(name), text)?;
                std::fs::set_permissions(directory.join(name), PermissionsExt::from_mode(0o644))?;
            }
            Ok(())
        };
        make().map_err(|e| {
            Error::io(format_args!("write the managed files in {}", directory.display()), &e)
        })?;
        Ok(Self { directory })
    }

    /// The path of one of the files.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }
}

/// What the settings of one start depend on.
#[derive(Clone, Copy, Debug)]
pub struct Situation<'a> {
    /// The timeline, shown in process titles.
    pub timeline: TimelineId,
    /// Major version of Postgres.
    pub major: u32,
    /// The data directory.
    pub data: &'a Path,
    /// Private directory of the socket.
    pub sockets: &'a Path,
    /// The shared configuration files.
    pub managed: &'a ManagedFiles,
    /// Whether the data directory has a `postgresql.conf`.
    pub has_config: bool,
    /// Whether it is the first start on the timeline.
    pub is_new: bool,
}

/// The command line of one start: data directory and forced settings.
pub fn arguments(situation: &Situation<'_>) -> Vec<OsString> {
    let mut arguments = vec![OsString::from("-D"), situation.data.into()];
    let mut settings = fixed(situation.major);
    if situation.is_new && situation.major >= 14 {
        // Before it recovers, Postgres makes durable what a life before it wrote: file by file, two
        // requests for each of some 1,300 files. Of a new timeline the kernel has nothing that is
        // not durable. It holds for one recovery only, and this Postgres does no other, as
        // `restart_after_crash` is off.
        settings.push(("recovery_init_sync_method", "syncfs"));
    }
    for (name, value) in settings {
        arguments.push("-c".into());
        arguments.push(format!("{name}={value}").into());
    }
    for (name, path) in paths(situation) {
        let mut setting = OsString::from(format!("{name}="));
        setting.push(path);
        arguments.push("-c".into());
        arguments.push(setting);
    }
    arguments.push("-c".into());
    arguments.push(format!("cluster_name=coppice {}", situation.timeline).into());
    arguments
}

/// A copied configuration may redirect any of these to the files of the cluster it came from.
fn paths(situation: &Situation<'_>) -> Vec<(&'static str, PathBuf)> {
    let mut paths = vec![
        ("data_directory", situation.data.to_owned()),
        ("hba_file", situation.managed.path("pg_hba.conf")),
        ("ident_file", situation.managed.path("pg_ident.conf")),
        ("unix_socket_directories", situation.sockets.to_owned()),
        ("external_pid_file", situation.sockets.join(PID_FILE)),
    ];
    if !situation.has_config {
        paths.push(("config_file", situation.managed.path("postgresql.conf")));
    }
    paths
}

fn fixed(major: u32) -> Vec<(&'static str, &'static str)> {
    let mut settings = vec![
        ("listen_addresses", ""),
        ("port", "5432"),
        ("unix_socket_permissions", "0700"),
        ("unix_socket_group", ""),
        // The proxy ends TLS; the certificate files of a copied cluster are not here.
        ("ssl", "off"),
        ("logging_collector", "off"),
        ("log_destination", "stderr"),
        // The supervisor restarts: it holds connections until recovery is over, where Postgres
        // would refuse them, and it reopens the data directory, which alone ends a latched
        // timeline.
        ("restart_after_crash", "off"),
        ("archive_mode", "off"),
        // Made for copy-on-write (PostgreSQL manual, 20.5): a segment with old contents gains
        // nothing here, and one that is written out with zeros is only more to write.
        ("wal_recycle", "off"),
        ("wal_init_zero", "off"),
        // Commits would wait for production's standbys for ever.
        ("synchronous_standby_names", ""),
        ("max_logical_replication_workers", "0"),
        // Always, as a copied shared_preload_libraries can hide in an included file; without
        // pg_cron it names nothing.
        ("cron.launch_active_jobs", "off"),
    ];
    if major < 15 {
        // Debian points it to a directory of /run that all clusters share.
        settings.push(("stats_temp_directory", "pg_stat_tmp"));
    }
    if major >= 12 {
        settings.extend(RECOVERY.map(|name| (name, "")));
    }
    if major >= 17 {
        settings.extend([("sync_replication_slots", "off"), ("synchronized_standby_slots", "")]);
    }
    settings
}

/// Settings of standbys and of recovery from an archive; before 12 they were in `recovery.conf`,
/// which is removed.
const RECOVERY: [&str; 10] = [
    "primary_conninfo",
    "primary_slot_name",
    "restore_command",
    "archive_cleanup_command",
    "recovery_end_command",
    "recovery_target",
    "recovery_target_lsn",
    "recovery_target_name",
    "recovery_target_time",
    "recovery_target_xid",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn line(major: u32, has_config: bool) -> String {
        line_of_start(major, has_config, false)
    }

    fn line_of_start(major: u32, has_config: bool, is_new: bool) -> String {
        let managed = ManagedFiles { directory: PathBuf::from("/run/etc") };
        let situation = Situation {
            timeline: TimelineId(7),
            major,
            data: Path::new("/mnt/00000007"),
            sockets: Path::new("/run/00000007"),
            managed: &managed,
            has_config,
            is_new,
        };
        let words: Vec<_> =
            arguments(&situation).iter().map(|word| word.to_string_lossy().into_owned()).collect();
        words.join(" ")
    }

    #[test]
    fn golden_command_line() {
        assert_eq!(
            line(15, true),
            "-D /mnt/00000007 -c listen_addresses= -c port=5432 -c unix_socket_permissions=0700 \
             -c unix_socket_group= -c ssl=off -c logging_collector=off \
             -c log_destination=stderr -c restart_after_crash=off -c archive_mode=off \
             -c wal_recycle=off -c wal_init_zero=off \
             -c synchronous_standby_names= -c max_logical_replication_workers=0 -c \
             cron.launch_active_jobs=off \
             -c primary_conninfo= -c primary_slot_name= -c restore_command= \
             -c archive_cleanup_command= \
             -c recovery_end_command= -c recovery_target= -c recovery_target_lsn= \
             -c recovery_target_name= \
             -c recovery_target_time= -c recovery_target_xid= -c data_directory=/mnt/00000007 \
             -c hba_file=/run/etc/pg_hba.conf -c ident_file=/run/etc/pg_ident.conf \
             -c unix_socket_directories=/run/00000007 \
             -c external_pid_file=/run/00000007/postgres.pid \
             -c cluster_name=coppice 00000007"
        );
    }

    #[test]
    fn versions_get_only_settings_they_know() {
        assert!(!line(11, true).contains("restore_command"));
        assert!(line(14, true).contains("stats_temp_directory=pg_stat_tmp"));
        assert!(!line(15, true).contains("stats_temp_directory"));
        assert!(line(17, true).contains("sync_replication_slots=off"));
        assert!(!line(16, true).contains("sync_replication_slots"));
    }

    #[test]
    fn only_the_first_start_does_without_a_sync_of_each_file() {
        let setting = "recovery_init_sync_method=syncfs";
        let first = line_of_start(14, true, true);
        assert!(first.contains(setting) && first.contains("restart_after_crash=off"));
        assert!(!line_of_start(14, true, false).contains(setting));
        assert!(!line_of_start(13, true, true).contains(setting), "it does not know the setting");
    }

    #[test]
    fn a_cluster_without_configuration_gets_the_managed_one() {
        assert!(line(15, false).contains("config_file=/run/etc/postgresql.conf"));
        assert!(!line(15, true).contains("config_file"));
    }
}
