//! `postgresql.auto.conf`, changed while no Postgres runs, as `ALTER SYSTEM` does while one does.

use super::data_directory::open_plainly;
use super::user::OsUser;
use crate::error::{Error, Result};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

const NAME: &str = "postgresql.auto.conf";
/// The name that `ALTER SYSTEM` uses too.
const NEW_NAME: &str = "postgresql.auto.conf.tmp";
/// Far more than all settings take.
const MAX_BYTES: u64 = 1 << 20;
const MAX_NAME_BYTES: usize = 128;
const MAX_VALUE_BYTES: usize = 10_000;

/// Settings of a branch's Postgres that are to change.
#[derive(Clone, Debug, Default)]
pub struct SettingsChange {
    /// Settings with their new values.
    pub set: BTreeMap<String, String>,
    /// Settings that are to have their default again.
    pub unset: Vec<String>,
}

impl SettingsChange {
    /// Refuses what is no name of a setting, and what the file cannot hold.
    pub fn check(&self) -> Result<()> {
        let names = self.set.keys().chain(&self.unset);
        if let Some(bad) = names.into_iter().find(|name| !is_name(name)) {
            let detail = format!("{bad:?} is no name of a setting");
            return Err(Error::invalid("bad_setting", detail));
        }
        if let Some(twice) = self.unset.iter().find(|name| self.set.contains_key(*name)) {
            let detail = format!("setting \"{twice}\" is both set and unset");
            return Err(Error::invalid("bad_setting", detail));
        }
        let bad =
            |value: &String| value.len() > MAX_VALUE_BYTES || value.contains(['\n', '\r', '\0']);
        if let Some((name, _)) = self.set.iter().find(|(_, value)| bad(value)) {
            let detail = format!(
                "the value of \"{name}\" is longer than {MAX_VALUE_BYTES} bytes or has line breaks"
            );
            return Err(Error::invalid("bad_setting", detail));
        }
        Ok(())
    }

    /// Writes the change to the file in `data`, durably, with the rights of `user`.
    pub(crate) fn write(&self, data: &Path, user: &OsUser) -> Result<()> {
        let change = || -> io::Result<()> {
            let mut before = Vec::new();
            match open_plainly(&data.join(NAME)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                file => {
                    file?.take(MAX_BYTES).read_to_end(&mut before)?;
                }
            }
            if before.len() as u64 == MAX_BYTES {
                return Err(io::Error::other("it is longer than 1 MiB"));
            }
            let new = data.join(NEW_NAME);
            match fs::remove_file(&new) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let mut file = File::options().write(true).create_new(true).mode(0o600).open(&new)?;
            file.write_all(&to_bytes(&self.edit(&to_text(&before))))?;
            file.sync_all()?;
            fs::rename(&new, data.join(NAME))?;
            File::open(data)?.sync_all()
        };
        user.with_rights(change)
            .map_err(|e| Error::io(format_args!("change {}", data.join(NAME).display()), &e))
    }

    /// The text of the file after the change.
    fn edit(&self, before: &str) -> String {
        let changes = |line: &&str| {
            let name = line.trim_start().split(['=', ' ', '\t']).next().unwrap_or_default();
            let is = |other: &String| other.eq_ignore_ascii_case(name);
            self.set.keys().chain(&self.unset).any(is)
        };
        let mut text: String =
            before.lines().filter(|line| !changes(line)).map(|line| format!("{line}\n")).collect();
        for (name, value) in &self.set {
            let value = to_text(value.as_bytes()).replace('\\', r"\\").replace('\'', "''");
            text += &format!("{name} = '{value}'\n");
        }
        text
    }
}

/// The file may be in any encoding: a character for each byte.
fn to_text(bytes: &[u8]) -> String {
    bytes.iter().copied().map(char::from).collect()
}

fn to_bytes(text: &str) -> Vec<u8> {
    text.chars().map(|char| u8::try_from(u32::from(char)).unwrap_or(b'?')).collect()
}

/// Whether it can be a setting: a word, or several with dots between.
fn is_name(name: &str) -> bool {
    let is_word = |word: &str| {
        word.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && word.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '$')
    };
    name.len() <= MAX_NAME_BYTES && name.split('.').all(is_word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(set: &[(&str, &str)], unset: &[&str]) -> SettingsChange {
        SettingsChange {
            set: set.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect(),
            unset: unset.iter().map(|name| (*name).to_owned()).collect(),
        }
    }

    #[test]
    fn the_file_has_each_setting_once() {
        let before = "# Do not edit\nwork_mem = '4MB'\nMax_Connections=5\n app.tenant 'a'\n";
        let change = change(&[("work_mem", "8MB"), ("app.path", r"C:\it's")], &["max_connections"]);
        change.check().unwrap();
        let expected =
            "# Do not edit\n app.tenant 'a'\napp.path = 'C:\\\\it''s'\nwork_mem = '8MB'\n";
        assert_eq!(change.edit(before), expected);
        assert_eq!(change.edit(expected), expected, "again");
    }

    #[test]
    fn what_is_no_setting_is_refused() {
        for (name, value) in [
            ("", "1"),
            ("a b", "1"),
            ("1a", "1"),
            ("a..b", "1"),
            ("a=b", "1"),
            ("include '/etc/passwd'", "1"),
            ("work_mem", "1\nport = 1"),
        ] {
            assert_eq!(change(&[(name, value)], &[]).check().unwrap_err().code, "bad_setting");
        }
        assert!(change(&[], &["x'y"]).check().is_err());
        assert!(change(&[("a", "1")], &["a"]).check().is_err());
    }
}
