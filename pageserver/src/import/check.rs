//! Asks an import's source what it is, before anything is made for it.
//!
//! The question goes through `psql`, so that it uses the same library, certificates and
//! operating-system user as the copy: what answers here, `pg_basebackup` reaches too.

use super::source::SourceServer;
use crate::compute::{Installation, OsUser, tool};
use crate::error::{Error, Result};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

/// Settings without which the copy would not start or not work as the source does. A source that
/// keeps its configuration outside the data directory (Debian) does not send it along. Those that
/// only superusers see are left out for other roles.
const QUESTION: &str = "
SELECT json_build_object(
  'version_num', current_setting('server_version_num')::int,
  'version', current_setting('server_version'),
  'role', current_user,
  'may_copy', (SELECT rolreplication OR rolsuper FROM pg_roles WHERE rolname = current_user),
  'tablespaces', (SELECT coalesce(json_object_agg(oid, pg_tablespace_location(oid)), '{}') FROM \
  pg_tablespace
    WHERE pg_tablespace_location(oid) LIKE '/%'),
  'settings', (SELECT coalesce(json_object_agg(name, setting), '{}') FROM pg_settings WHERE name \
  IN (
    'shared_preload_libraries', 'max_connections', 'max_prepared_transactions', \
    'max_locks_per_transaction',
    'max_worker_processes', 'track_commit_timestamp', 'default_text_search_config')))";

/// What an import must know of its source.
#[derive(Debug, Deserialize)]
pub(super) struct Facts {
    version_num: u32,
    version: String,
    role: String,
    may_copy: bool,
    /// Tablespaces outside the data directory: number to place.
    pub(super) tablespaces: BTreeMap<String, String>,
    /// Settings to keep.
    pub(super) settings: BTreeMap<String, String>,
}

/// Asks the source and refuses one that cannot be copied.
pub(super) async fn check(
    installation: &Installation,
    user: &OsUser,
    source: &SourceServer,
) -> Result<Facts> {
    let mut command = tool::command(installation, "psql");
    command.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", QUESTION]);
    source.address(&mut command);
    let answer = tool::run(command, user, "", LIMIT).await?;
    if !answer.success {
        return Err(Error::unavailable(
            "import_unreachable",
            format!("cannot reach the source: {}", source.redact(&answer.complaints)),
        ));
    }
    let facts: Facts = serde_json::from_str(&answer.output).map_err(|e| {
        Error::unavailable("import_unreachable", format!("the source gave an odd answer: {e}"))
    })?;
    facts.check(installation)?;
    Ok(facts)
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
