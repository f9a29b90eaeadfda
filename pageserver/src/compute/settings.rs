//! What a branch may not inherit: settings forced on the command line, and the files that replace
//! copied ones.
//!
//! A data directory can be a copy of a production cluster, with that cluster's configuration. On
//! the command line a setting wins over `postgresql.conf` and `ALTER SYSTEM`, so a branch can never
//! write to production's archive, slots, standbys or subscriptions, run its scheduled jobs, or open
//! a port. All other settings stay the branch's own.

use super::log::LINE_PREFIX;
use crate::error::{Error, Result};
use crate::storage::page::TimelineId;
use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt;
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
///
/// The exception is role `coppice`, the server's own, whom the proxy refuses (see [`super::door`]).
const HBA: &str = "# Written by the Coppice server at every start; changes are lost.\n\
                   local all coppice peer map=coppice\n\
                   local all all md5\n\
                   local replication all md5\n";
const IDENT: &str = "# Written by the Coppice server at every start; changes are lost.\n";
/// The configuration files that all computes share, outside any data directory.
#[derive(Clone, Debug)]
pub struct ManagedFiles {
    directory: PathBuf,
}

impl ManagedFiles {
    /// Writes the files into `directory`, which is made readable for the user that Postgres runs
    /// as.
    pub fn write(directory: PathBuf) -> Result<Self> {
        let make = || -> std::io::Result<()> {
            std::fs::create_dir_all(&directory)?;
            std::fs::set_permissions(&directory, PermissionsExt::from_mode(0o755))?;
            put(&directory.join("pg_hba.conf"), HBA)?;
            let server = server_user().ok_or_else(|| {
                let uid = nix::unistd::geteuid();
                std::io::Error::other(format!("user id {uid} has no name: add it to /etc/passwd"))
            })?;
            let ident = format!("{IDENT}coppice \"{server}\" coppice\n");
            put(&directory.join("pg_ident.conf"), &ident)
        };
        make().map_err(|e| {
            Error::io(format_args!("write the managed files in {}", directory.display()), &e)
        })?;
        Ok(Self { directory })
    }

    /// Writes what Postgres reads as its configuration file: our defaults, and then the branch's
    /// own file, if it has one. `ALTER SYSTEM` wins over both.
    pub(crate) fn write_defaults(&self, timeline: TimelineId, defaults: &Defaults) -> Result<()> {
        let path = self.defaults(timeline);
        put(&path, &defaults.text()?)
            .map_err(|e| Error::io(format_args!("write {}", path.display()), &e))
    }

    /// Removes that file, once no Postgres reads it any more.
    pub(crate) fn remove_defaults(&self, timeline: TimelineId) {
        // A file too many is written over by the next start.
        let _there = std::fs::remove_file(self.defaults(timeline));
    }

    fn defaults(&self, timeline: TimelineId) -> PathBuf {
        self.directory.join(format!("{timeline}.conf"))
    }

    /// The path of one of the files.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }
}

/// The operating system's name of the user that this server runs as.
fn server_user() -> Option<String> {
    let user = nix::unistd::User::from_uid(nix::unistd::geteuid()).ok().flatten();
    user.map(|user| user.name).filter(|name| !name.contains(['"', '\n']))
}

fn put(path: &Path, text: &str) -> std::io::Result<()> {
    std::fs::write(path, text)?;
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o644))
}

/// Settings that a branch has unless it says otherwise.
pub(crate) struct Defaults {
    /// What the temporary files of one session may take, in KiB.
    pub(crate) temp_file_kib: Option<u64>,
    /// The branch's own configuration file. Clusters that keep it elsewhere (Debian in /etc) have
    /// none.
    pub(crate) config: Option<PathBuf>,
}

impl Defaults {
    fn text(&self) -> Result<String> {
        let mut text =
            String::from("# Written by the Coppice server at every start; ALTER SYSTEM works.\n");
        if let Some(kib) = self.temp_file_kib {
            text += &format!("temp_file_limit = {}kB\n", kib.clamp(1024, MAX_KIB));
        }
        if let Some(config) = &self.config {
            let path = config.to_str().filter(|path| !path.contains('\n')).ok_or_else(|| {
                let detail = format!("Postgres cannot include the file {}", config.display());
                Error::invalid("data_path", detail)
            })?;
            text += &format!("include '{}'\n", path.replace('\'', "''"));
        }
        Ok(text)
    }
}

/// The highest value of a setting in KiB.
const MAX_KIB: u64 = i32::MAX as u64;

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
    /// Whether it is the first start on the timeline.
    pub is_new: bool,
    /// Whether the jobs of `pg_cron` run.
    pub scheduled_jobs: bool,
    /// `shared_preload_libraries`, if the branch's own is not to be used.
    pub preload: Option<&'a str>,
}

/// The command line of one start: data directory and forced settings.
pub fn arguments(situation: &Situation<'_>) -> Vec<OsString> {
    let mut arguments = vec![OsString::from("-D"), situation.data.into()];
    let mut settings = fixed(situation.major);
    settings.extend(jobs(situation.scheduled_jobs));
    if let Some(preload) = situation.preload {
        settings.push(("shared_preload_libraries", preload));
    }
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

/// The setting by which `pg_cron` runs its jobs or not. It is always given, as a copied
/// `shared_preload_libraries` can hide in an included file.
pub(super) const RUN_JOBS: &str = "cron.launch_active_jobs";

fn jobs(run: bool) -> Vec<(&'static str, &'static str)> {
    match run {
        false => vec![(RUN_JOBS, "off")],
        // As Postgres's own processes: a branch has no port that they could connect to.
        true => vec![(RUN_JOBS, "on"), ("cron.use_background_workers", "on")],
    }
}

/// Names of the settings that every branch is forced to have.
pub(crate) fn forced_names(major: u32) -> Vec<&'static str> {
    let files = ["data_directory", "config_file", "hba_file", "ident_file", "external_pid_file"];
    let others = [RUN_JOBS, "cron.use_background_workers", "unix_socket_directories"];
    let fixed = fixed(major).into_iter().map(|(name, _)| name);
    fixed.chain(files).chain(others).collect()
}

/// A copied configuration may redirect any of these to the files of the cluster it came from.
fn paths(situation: &Situation<'_>) -> Vec<(&'static str, PathBuf)> {
    vec![
        ("data_directory", situation.data.to_owned()),
        ("config_file", situation.managed.defaults(situation.timeline)),
        ("hba_file", situation.managed.path("pg_hba.conf")),
        ("ident_file", situation.managed.path("pg_ident.conf")),
        ("unix_socket_directories", situation.sockets.to_owned()),
        ("external_pid_file", situation.sockets.join(PID_FILE)),
    ]
}

fn fixed<'a>(major: u32) -> Vec<(&'static str, &'a str)> {
    let mut settings = vec![
        ("listen_addresses", ""),
        ("port", "5432"),
        ("unix_socket_permissions", "0700"),
        ("unix_socket_group", ""),
        // The proxy ends TLS; the certificate files of a copied cluster are not here.
        ("ssl", "off"),
        ("logging_collector", "off"),
        ("log_destination", "stderr"),
        ("log_line_prefix", LINE_PREFIX),
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
    ];
    if major < 15 {
        // Debian points it to a directory of /run that all clusters share.
        settings.push(("stats_temp_directory", "pg_stat_tmp"));
    }
    if major >= 12 {
        settings.extend(RECOVERY.map(|name| (name, "")));
    }
    if major < 17 {
        // It would give the name of a role another meaning.
        settings.push(("db_user_namespace", "off"));
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

    fn line(major: u32) -> String {
        line_of(major, false, false)
    }

    fn line_of(major: u32, is_new: bool, scheduled_jobs: bool) -> String {
        let managed = ManagedFiles { directory: PathBuf::from("/run/etc") };
        let situation = Situation {
            timeline: TimelineId(7),
            major,
            data: Path::new("/mnt/00000007"),
            sockets: Path::new("/run/00000007"),
            managed: &managed,
            is_new,
            scheduled_jobs,
            preload: None,
        };
        let words: Vec<_> =
            arguments(&situation).iter().map(|word| word.to_string_lossy().into_owned()).collect();
        words.join(" ")
    }

    #[test]
    fn golden_command_line() {
        assert_eq!(
            line(15),
            "-D /mnt/00000007 -c listen_addresses= -c port=5432 -c unix_socket_permissions=0700 \
             -c unix_socket_group= -c ssl=off -c logging_collector=off \
             -c log_destination=stderr -c log_line_prefix=%m [%p]  \
             -c restart_after_crash=off -c archive_mode=off \
             -c wal_recycle=off -c wal_init_zero=off \
             -c synchronous_standby_names= -c max_logical_replication_workers=0 \
             -c primary_conninfo= -c primary_slot_name= -c restore_command= \
             -c archive_cleanup_command= \
             -c recovery_end_command= -c recovery_target= -c recovery_target_lsn= \
             -c recovery_target_name= \
             -c recovery_target_time= -c recovery_target_xid= \
             -c db_user_namespace=off \
             -c cron.launch_active_jobs=off \
             -c data_directory=/mnt/00000007 \
             -c config_file=/run/etc/00000007.conf \
             -c hba_file=/run/etc/pg_hba.conf -c ident_file=/run/etc/pg_ident.conf \
             -c unix_socket_directories=/run/00000007 \
             -c external_pid_file=/run/00000007/postgres.pid \
             -c cluster_name=coppice 00000007"
        );
    }

    #[test]
    fn versions_get_only_settings_they_know() {
        assert!(!line(11).contains("restore_command"));
        assert!(line(14).contains("stats_temp_directory=pg_stat_tmp"));
        assert!(!line(15).contains("stats_temp_directory"));
        assert!(line(17).contains("sync_replication_slots=off"));
        assert!(!line(16).contains("sync_replication_slots"));
    }

    #[test]
    fn only_the_first_start_does_without_a_sync_of_each_file() {
        let setting = "recovery_init_sync_method=syncfs";
        let first = line_of(14, true, false);
        assert!(first.contains(setting) && first.contains("restart_after_crash=off"));
        assert!(!line_of(14, false, false).contains(setting));
        assert!(!line_of(13, true, false).contains(setting), "it does not know the setting");
    }

    #[test]
    fn jobs_run_only_where_they_are_allowed_to() {
        assert!(line_of(15, false, true).contains("cron.launch_active_jobs=on"));
        assert!(line_of(15, false, false).contains("cron.launch_active_jobs=off"));
    }

    #[test]
    fn the_branchs_own_configuration_wins_over_our_defaults() {
        let text = |temp_file_kib, config: Option<&str>| {
            Defaults { temp_file_kib, config: config.map(PathBuf::from) }.text().unwrap()
        };
        let full = text(Some(5000), Some("/it's/postgresql.conf"));
        assert!(full.ends_with("temp_file_limit = 5000kB\ninclude '/it''s/postgresql.conf'\n"));
        assert!(text(Some(1 << 50), None).ends_with("temp_file_limit = 2147483647kB\n"));
        assert_eq!(text(None, None).lines().count(), 1, "nothing but the comment");
    }
}
