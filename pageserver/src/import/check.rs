//! Asks an import's source what it is, before anything is made for it.
//!
//! The question goes through `psql`, so that it uses the same library, certificates and
//! operating-system user as the copy: what answers here, `pg_basebackup` reaches too.

use super::settings::SourceSettings;
use super::source::SourceServer;
use crate::compute::{Installation, OsUser, tool};
use crate::error::{Error, Result};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

/// What the source is asked. The settings are those that a file or the command line set, since a
/// source may keep its configuration outside the data directory.
const QUESTION: &str = "
SELECT json_build_object(
  'version_num', current_setting('server_version_num')::int,
  'version', current_setting('server_version'),
  'role', current_user,
  'database', current_database(),
  'may_copy', (SELECT rolreplication OR rolsuper FROM pg_roles WHERE rolname = current_user),
  'tablespaces', (SELECT coalesce(json_object_agg(oid, pg_tablespace_location(oid)), '{}')
    FROM pg_tablespace WHERE pg_tablespace_location(oid) LIKE '/%'),
  'settings', json_build_object(
    'kept', (SELECT coalesce(json_object_agg(name, setting), '{}') FROM pg_settings
      WHERE source IN ('configuration file', 'command line', 'environment variable')
        AND context <> 'internal' AND setting IS NOT NULL),
    'memory', (SELECT coalesce(json_object_agg(name, setting::bigint * CASE unit
        WHEN 'B' THEN 1 WHEN 'kB' THEN 1024 WHEN '8kB' THEN 8192 WHEN 'MB' THEN 1048576 END), '{}')
      FROM pg_settings WHERE unit IN ('B', 'kB', '8kB', 'MB')),
    'huge_pages', (SELECT setting FROM pg_settings WHERE name = 'huge_pages'),
    'sees_all', pg_has_role(current_user, 'pg_read_all_settings', 'USAGE'),
    'reads_files', has_function_privilege('pg_catalog.pg_show_all_file_settings()', 'EXECUTE')))";

/// Parameters of the application's own, which only the files tell.
const FILES_QUESTION: &str = "
SELECT coalesce(json_object_agg(name, setting), '{}') FROM pg_catalog.pg_show_all_file_settings()
  WHERE applied AND name LIKE '%.%' AND setting IS NOT NULL";

/// What an import must know of its source.
#[derive(Debug, Deserialize)]
pub(super) struct Facts {
    version_num: u32,
    version: String,
    /// The role that was asked, and the database.
    pub(super) role: String,
    pub(super) database: String,
    may_copy: bool,
    /// Tablespaces outside the data directory: number to place.
    pub(super) tablespaces: BTreeMap<String, String>,
    /// Its settings.
    pub(super) settings: SourceSettings,
}

/// Asks the source and refuses one that cannot be copied.
pub(super) async fn check(
    installation: &Installation,
    user: &OsUser,
    source: &SourceServer,
) -> Result<Facts> {
    let mut facts: Facts = ask(installation, user, source, QUESTION).await?;
    if facts.settings.reads_files {
        let own: BTreeMap<String, String> = ask(installation, user, source, FILES_QUESTION).await?;
        facts.settings.kept.extend(own);
    }
    facts.check(installation)?;
    Ok(facts)
}

/// Asks the source for a value of JSON.
async fn ask<T: DeserializeOwned>(
    installation: &Installation,
    user: &OsUser,
    source: &SourceServer,
    question: &str,
) -> Result<T> {
    let mut command = tool::command(installation, "psql");
    command.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", question]);
    source.address(&mut command);
    command.env("PGCLIENTENCODING", "UTF8");
    let answer = tool::run(command, user, "", LIMIT).await?;
    if !answer.success {
        return Err(Error::unavailable(
            "import_unreachable",
            format!("cannot reach the source: {}", source.redact(&answer.complaints)),
        ));
    }
    serde_json::from_str(&answer.output).map_err(|e| {
        Error::unavailable("import_unreachable", format!("the source gave an odd answer: {e}"))
    })
}

impl Facts {
    fn check(&self, installation: &Installation) -> Result<()> {
        let major = self.version_num / 10_000;
        if major != installation.major {
            return Err(Error::invalid(
                "import_version",
                format!(
                    "the source runs Postgres {}, this server runs Postgres {}: a physical copy \
                     needs the same major version; install Postgres {major} here and name it with \
                     --postgres-bin",
                    self.version, installation.version
                ),
            ));
        }
        if !self.may_copy {
            return Err(Error::invalid(
                "import_role",
                format!(
                    "role {} of the source may not copy it; run ALTER ROLE \"{}\" REPLICATION \
                     there, or use another role",
                    self.role,
                    self.role.replace('"', "\"\"")
                ),
            ));
        }
        Ok(())
    }
}
