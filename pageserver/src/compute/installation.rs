//! The Postgres that this machine has.

use crate::error::{Error, Result};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Programs that must be there.
const NEEDED: [&str; 2] = ["postgres", "initdb"];
/// Clients that imports run besides; distributions package them apart from the server.
const NEEDED_TO_IMPORT: [&str; 2] = ["psql", "pg_basebackup"];

/// One installed Postgres.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installation {
    /// Directory of its programs.
    pub bin: PathBuf,
    /// Version as it prints it, such as `15.13`.
    pub version: String,
    /// Major version, which a data directory must match.
    pub major: u32,
}

impl Installation {
    /// The Postgres in `bin`, or the newest one found on the machine.
    pub fn find(bin: Option<&Path>) -> Result<Self> {
        match bin {
            Some(bin) => Self::at(bin),
            None => newest(candidates().iter().filter_map(|bin| Self::at(bin).ok()))
                .ok_or_else(none_found),
        }
    }

    /// The path of one of its programs.
    pub fn program(&self, name: &str) -> PathBuf {
        self.bin.join(name)
    }

    /// Whether imports have the programs that they run.
    pub(crate) fn require_clients(&self) -> Result<()> {
        require(&self.bin, &NEEDED_TO_IMPORT)
    }

    fn at(bin: &Path) -> Result<Self> {
        // A compute's working directory is not ours, so a relative path would stop working there.
        let bin = bin
            .canonicalize()
            .map_err(|e| no_postgres(format!("cannot look into {}: {e}", bin.display())))?;
        require(&bin, &NEEDED)?;
        let output = Command::new(bin.join("postgres"))
            .arg("-V")
            .env_clear()
            .output()
            .map_err(|e| no_postgres(format!("cannot run {}/postgres: {e}", bin.display())))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let Some((version, major)) = parse_version(&text) else {
            let said = text.trim();
            return Err(no_postgres(format!("{}/postgres -V says '{said}'", bin.display())));
        };
        Ok(Self { bin, version, major })
    }
}

fn require(bin: &Path, programs: &[&str]) -> Result<()> {
    match programs.iter().find(|program| !bin.join(program).is_file()) {
        Some(missing) => Err(no_postgres(format!("{} has no program {missing}", bin.display()))),
        None => Ok(()),
    }
}

/// Reads `postgres (PostgreSQL) 15.13 (Debian 15.13-0+deb12u1)`, also with `18beta1` or `19devel`.
fn parse_version(text: &str) -> Option<(String, u32)> {
    let version = text.strip_prefix("postgres (PostgreSQL) ")?.split_whitespace().next()?;
    let digits = version.bytes().take_while(u8::is_ascii_digit).count();
    Some((version.to_owned(), version[..digits].parse().ok()?))
}

fn newest(found: impl Iterator<Item = Installation>) -> Option<Installation> {
    // The first of equals wins, so that the packaged places go before PATH.
    found.reduce(|best, next| if next.major > best.major { next } else { best })
}

fn candidates() -> Vec<PathBuf> {
    let mut places = children("/usr/lib/postgresql", "");
    places.extend(children("/usr", "pgsql-"));
    places.iter_mut().for_each(|place| place.push("bin"));
    places.push(PathBuf::from("/usr/local/pgsql/bin"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    places.extend(std::env::split_paths(&path).filter(|place| place.is_absolute()));
    places.retain(|place| place.join("postgres").is_file());
    places
}

fn children(directory: &str, prefix: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
        .map(|entry| entry.path())
        .collect()
}

fn none_found() -> Error {
    no_postgres(
        "no Postgres found in /usr/lib/postgresql, /usr/pgsql-*, /usr/local/pgsql or PATH"
            .to_owned(),
    )
}

fn no_postgres(what: String) -> Error {
    Error::unavailable(
        "no_postgres",
        format!(
            "{what}; install it (Debian, Ubuntu: apt-get install postgresql; Fedora, RHEL: dnf \
             install postgresql-server) or name its program directory with --postgres-bin"
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_postgres_prints_them() {
        let debian = parse_version("postgres (PostgreSQL) 15.13 (Debian 15.13-0+deb12u1)\n");
        assert_eq!(debian, Some(("15.13".to_owned(), 15)));
        assert_eq!(
            parse_version("postgres (PostgreSQL) 18beta1"),
            Some(("18beta1".to_owned(), 18))
        );
        assert_eq!(parse_version("postgres (PostgreSQL) devel"), None);
        assert_eq!(parse_version("psql (PostgreSQL) 15.13"), None);
    }

    #[test]
    fn the_newest_is_chosen() {
        let of =
            |major| Installation { bin: PathBuf::from("/x"), version: format!("{major}.0"), major };
        assert_eq!(newest([of(14), of(17), of(9)].into_iter()), Some(of(17)));
    }

    #[test]
    fn a_directory_without_postgres_names_itself_and_the_remedy() {
        let error = Installation::find(Some(Path::new("/usr"))).unwrap_err();
        assert_eq!(error.code, "no_postgres");
        assert!(error.detail.contains("/usr has no program postgres"), "{error}");
        assert!(error.detail.contains("--postgres-bin"), "{error}");
    }
}
