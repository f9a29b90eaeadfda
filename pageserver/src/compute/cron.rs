//! `pg_cron`, whose jobs do not run on a branch unless they are allowed to.
//!
//! Since its version 1.5 a setting keeps it from running jobs. An older one runs them whenever it
//! is loaded, so it is not loaded.

use super::child::Surroundings;
use super::installation::Installation;
use super::settings::{self, RUN_JOBS, Situation};
use super::tool;
use super::user::OsUser;
use crate::error::Result;
use std::fs;
use std::time::Duration;

/// Where Postgres's libraries are, from the directory of its programs.
const PLACES: [&str; 3] = ["../lib", "../lib/postgresql", "../lib64"];
const LIBRARY: &str = "pg_cron";
const LIMIT: Duration = Duration::from_secs(60);

/// The `shared_preload_libraries` of a branch without `pg_cron`, if the installed one would run the
/// jobs and the branch loads it.
pub(super) async fn preload_without(
    installation: &Installation,
    user: &OsUser,
    situation: &Situation<'_>,
) -> Result<Option<String>> {
    if situation.scheduled_jobs || !runs_always(installation) {
        return Ok(None);
    }
    let mut command = tool::command(installation, "postgres");
    command.args(["-C", "shared_preload_libraries"]).args(settings::arguments(situation));
    let said = tool::run_in(command, user, "", LIMIT, Surroundings::ours()).await?;
    // What is wrong with the settings is said by the start.
    Ok(Some(said.output).filter(|_| said.success).and_then(|list| without(list.trim())))
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
