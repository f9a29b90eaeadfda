//! `pg_cron`, whose jobs do not run on a branch unless they are allowed to.
//!
//! Since its version 1.5 a setting keeps it from running jobs. An older one runs them whenever it
//! is loaded, so it is not loaded.

use super::child::Surroundings;
use super::data_directory::open_plainly;
use super::installation::Installation;
use super::settings::{self, RUN_JOBS, Situation};
use super::tool;
use super::user::OsUser;
use crate::error::Result;
use crate::tasks;
use std::fs;
use std::io::{ErrorKind, Read};
use std::path::Path;
use std::time::Duration;

/// Where Postgres's libraries are, from the directory of its programs.
const PLACES: [&str; 3] = ["../lib", "../lib/postgresql", "../lib64"];
const LIBRARY: &str = "pg_cron";
/// Where a branch's own settings are. Asking Postgres for them takes as long as half a start.
const FILES: [&str; 2] = ["postgresql.conf", "postgresql.auto.conf"];
/// Far more than a configuration file has.
const MAX_BYTES: u64 = 1 << 20;
const LIMIT: Duration = Duration::from_secs(60);

/// The `shared_preload_libraries` of a branch without `pg_cron`, if the installed one would run the
/// jobs and the branch loads it.
pub(super) async fn preload_without(
    installation: &Installation,
    user: &OsUser,
    situation: &Situation<'_>,
) -> Result<Option<String>> {
    if situation.scheduled_jobs {
        return Ok(None);
    }
    let (of, as_user, data) = (installation.clone(), user.clone(), situation.data.to_owned());
    let may_run = move || {
        let may_load = || FILES.iter().any(|name| may_name_it(&data.join(name)));
        runs_always(&of) && as_user.with_rights(may_load)
    };
    if !tasks::blocking(may_run).await {
        return Ok(None);
    }
    let mut command = tool::command(installation, "postgres");
    command.args(["-C", "shared_preload_libraries"]).args(settings::arguments(situation));
    let said = tool::run_in(command, user, "", LIMIT, Surroundings::ours()).await?;
    // What is wrong with the settings is said by the start.
    Ok(Some(said.output).filter(|_| said.success).and_then(|list| without(list.trim())))
}

/// Whether a configuration file may name the library, or another file that does.
fn may_name_it(path: &Path) -> bool {
    let mut text = Vec::new();
    let read = open_plainly(path).and_then(|file| file.take(MAX_BYTES).read_to_end(&mut text));
    match read {
        Err(error) if error.kind() == ErrorKind::NotFound => return false,
        // What cannot be read here, or is longer, Postgres may be able to read.
        Err(_) => return true,
        Ok(count) if count as u64 == MAX_BYTES => return true,
        Ok(_) => {}
    }
    let text = String::from_utf8_lossy(&text).to_ascii_lowercase();
    let mut lines = text.lines().map(str::trim_start).filter(|line| !line.starts_with('#'));
    lines.any(|line| line.contains(LIBRARY) || line.starts_with("include"))
}

/// Whether the installed library does not know the setting.
fn runs_always(installation: &Installation) -> bool {
    let places = PLACES.iter().map(|place| installation.bin.join(place));
    let library = places.map(|place| place.join(format!("{LIBRARY}.so")));
    let mut found = library.filter_map(|library| fs::read(library).ok());
    let knows =
        |bytes: &[u8]| bytes.windows(RUN_JOBS.len()).any(|part| part == RUN_JOBS.as_bytes());
    found.any(|bytes| !knows(&bytes))
}

/// A list of libraries without this one; none if it is not in the list.
fn without(list: &str) -> Option<String> {
    let is_it = |name: &&str| {
        let name = name.trim().trim_matches('"');
        let file = name.rsplit('/').next().unwrap_or(name);
        file.strip_suffix(".so").unwrap_or(file) == LIBRARY
    };
    let kept: Vec<&str> = list.split(',').filter(|name| !is_it(name)).map(str::trim).collect();
    (kept.len() < list.split(',').count()).then(|| kept.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_library_leaves_the_list() {
        for (list, expected) in [
            ("pg_cron", Some("")),
            ("pg_stat_statements, pg_cron,auto_explain", Some("pg_stat_statements,auto_explain")),
            ("\"$libdir/pg_cron\", x", Some("x")),
            ("/usr/lib/pg_cron.so", Some("")),
            ("pg_cronicle, my_pg_cron", None),
            ("", None),
        ] {
            assert_eq!(without(list).as_deref(), expected, "{list:?}");
        }
    }
}
