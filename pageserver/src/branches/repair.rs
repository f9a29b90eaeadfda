//! What helps with a branch that nobody can use as it is: settings that keep its Postgres from
//! starting, and roles that let nobody in.

use super::change::{Data, Decision, Departure};
use super::directory::NameChange;
use super::{Branches, rules};
use crate::compute::door::{CLOSED, DOOR_MISSING, Door, ROLE, said};
use crate::compute::{Lease, SettingsChange, door};
use crate::error::{Error, Result};
use crate::events::{Action, Actor};
use crate::secret::{self, Secret};
use crate::storage::catalog::BranchRecord;
use crate::storage::page::TimelineId;
use std::sync::Arc;
use std::time::Instant;

/// Characters of a generated password: 192 bits.
const PASSWORD_CHARS: usize = 32;
/// Longest password that somebody chooses.
const MAX_PASSWORD_BYTES: usize = 1000;
/// Role that is made anew where it is missing.
const SUPERUSER: &str = "postgres";
/// How often a branch is stopped to have its role made.
const REPAIRS: usize = 10;
/// Settings that are lists of names, each of which is quoted for itself.
const LISTS: [&str; 6] = [
    "shared_preload_libraries",
    "session_preload_libraries",
    "local_preload_libraries",
    "search_path",
    "temp_tablespaces",
    "unix_socket_directories",
];

impl Branches {
    /// Changes settings of a branch's Postgres: through the door while it runs, else in its file
    /// without starting it. Returns those that take effect at the next start only.
    pub async fn set_postgres(
        self: &Arc<Self>,
        actor: Actor,
        name: &str,
        change: SettingsChange,
    ) -> Result<Vec<String>> {
        change.check()?;
        let began = Instant::now();
        let record = self.record(name)?;
        let timeline = TimelineId(record.timeline);
        let written = change.clone();
        let work = move |data: &_, user: &_| written.write(data, user);
        let later = match self.supervisor.offline(timeline, work).await? {
            Some(()) => change.set.keys().chain(&change.unset).cloned().collect(),
            None => {
                let (_lease, door) = self.door(name).await?;
                Door::limited(alter_system(&door, &change)).await?
            }
        };
        self.announce(&actor, Action::Update, (record.id, name), None, (timeline, began));
        Ok(later)
    }

    /// Gives a role of a branch a new password, a random one if none is given, and lets it log in;
    /// the superuser is made anew if it is missing. Returns the URL with the password.
    pub async fn new_password(
        self: &Arc<Self>,
        actor: Actor,
        name: &str,
        role: Option<String>,
        password: Option<Secret>,
    ) -> Result<Secret> {
        let began = Instant::now();
        let record = self.record(name)?;
        let role = role.unwrap_or_else(|| record.login.role.clone());
        if role.is_empty() || role.contains('\0') || role == ROLE {
            return Err(Error::invalid("bad_role", format!("role {role:?} can have no password")));
        }
        let timeline = TimelineId(record.timeline);
        let password = password.map_or_else(random_password, checked)?;
        let (_lease, door) = self.repaired_door(name, timeline).await?;
        Door::limited(let_in(&door, &role, &password)).await?;
        if role == record.login.role {
            self.note_password(&actor, name, timeline, password.clone()).await?;
        } else {
            self.announce(&actor, Action::Update, (record.id, name), None, (timeline, began));
        }
        Ok(self.url((name, &record), None, &role, Some(&password)))
    }

    /// A session of the server on a branch, which is woken for it.
    async fn door(self: &Arc<Self>, name: &str) -> Result<(Lease, Door)> {
        let lease = self.acquire(name).await?;
        let door = Door::open(&lease).await?;
        Ok((lease, door))
    }

    /// The same; a branch whose role for it is gone is started anew.
    async fn repaired_door(
        self: &Arc<Self>,
        name: &str,
        timeline: TimelineId,
    ) -> Result<(Lease, Door)> {
        match self.door(name).await {
            Err(error) if error.code == DOOR_MISSING => {
                tracing::warn!(branch = %name, %error, "the branch starts anew");
                // Clients may wake it before the note is gone.
                for _ in 0..REPAIRS {
                    self.supervisor.suspend(timeline).await;
                    if self.supervisor.offline(timeline, door::forget_made).await?.is_some() {
                        break;
                    }
                }
                self.door(name).await
            }
            door => door,
        }
    }

    async fn note_password(
        self: &Arc<Self>,
        actor: &Actor,
        name: &str,
        timeline: TimelineId,
        password: Secret,
    ) -> Result<()> {
        let (actor, name) = (actor.clone(), name.to_owned());
        self.changing(false, move |this| {
            this.change(&actor, Action::Update, &name, |record| {
                if record.timeline != timeline.0 {
                    return Err(rules::changed_meanwhile(&name));
                }
                let branch = record.id;
                let record = BranchRecord { password: Some(password), ..record };
                let put = NameChange::Put(name.clone(), record);
                Ok(Decision {
                    branch,
                    other_name: None,
                    data: Data::Same(timeline),
                    names: Box::new(|_| vec![put]),
                    leaving: Departure::Nothing,
                })
            })
        })
        .await
    }
}

/// Changes settings of a Postgres that runs; those that take effect at its next start only.
async fn alter_system(door: &Door, change: &SettingsChange) -> Result<Vec<String>> {
    let run = async |sql: &str, name: &str| {
        door.client().batch_execute(sql).await.map_err(|error| {
            Error::invalid("bad_setting", format!("setting \"{name}\": {}", said(&error)))
        })
    };
    for (name, value) in &change.set {
        let sql = match values(name, value) {
            list if list.is_empty() => format!("ALTER SYSTEM RESET {}", dotted(name)),
            list => format!("ALTER SYSTEM SET {} = {}", dotted(name), list.join(", ")),
        };
        run(&sql, name).await?;
    }
    for name in &change.unset {
        run(&format!("ALTER SYSTEM RESET {}", dotted(name)), name).await?;
    }
    let names: Vec<String> = change.set.keys().chain(&change.unset).cloned().collect();
    let lower: Vec<String> = names.iter().map(|name| name.to_ascii_lowercase()).collect();
    let question = "SELECT name FROM pg_catalog.pg_settings \
                    WHERE lower(name) = ANY ($1) AND context = 'postmaster'";
    let failed = |error: tokio_postgres::Error| Error::unavailable(CLOSED, said(&error));
    door.client().batch_execute("SELECT pg_catalog.pg_reload_conf()").await.map_err(failed)?;
    let rows = door.client().query(question, &[&lower]).await.map_err(failed)?;
    Ok(rows.iter().filter_map(|row| row.try_get(0).ok()).collect())
}

/// A password that the server makes.
pub(super) fn random_password() -> Result<Secret> {
    secret::random_text(PASSWORD_CHARS).map(Secret::from)
}

/// Refuses a password that Postgres cannot take.
fn checked(password: Secret) -> Result<Secret> {
    let text = password.expose();
    if text.is_empty() || text.len() > MAX_PASSWORD_BYTES || text.contains('\0') {
        let detail = format!("a password has 1 to {MAX_PASSWORD_BYTES} bytes, none of them zero");
        return Err(Error::invalid("bad_password", detail));
    }
    Ok(password)
}

/// Lets a role log in with a password.
pub(super) async fn let_in(door: &Door, role: &str, password: &Secret) -> Result<()> {
    let failed = |error: tokio_postgres::Error| {
        let why = password.redact(&said(&error));
        Error::conflict("password_refused", format!("role \"{role}\" gets no password: {why}"))
    };
    let question = "SELECT FROM pg_catalog.pg_roles WHERE rolname = $1";
    let exists = door.client().query_opt(question, &[&role]).await.map_err(failed)?.is_some();
    let superuser = role == SUPERUSER;
    let verb = match (exists, superuser) {
        (true, _) => "ALTER",
        (false, true) => "CREATE",
        (false, false) => {
            let detail = format!("role \"{role}\" does not exist on the branch");
            return Err(Error::not_found("role_not_found", detail));
        }
    };
    let rights = if superuser { "SUPERUSER LOGIN" } else { "LOGIN" };
    let sql = format!(
        "SET password_encryption = 'scram-sha-256'; \
         {verb} ROLE {} WITH {rights} CONNECTION LIMIT -1 VALID UNTIL 'infinity' PASSWORD {}",
        identifier(role),
        literal(password.expose())
    );
    door.client().batch_execute(&sql).await.map_err(failed)
}

/// The value of a setting as literals; none for an empty list.
fn values(name: &str, value: &str) -> Vec<String> {
    if !LISTS.iter().any(|list| list.eq_ignore_ascii_case(name)) {
        return vec![literal(value)];
    }
    let elements = value.split(',').map(|element| element.trim().trim_matches('"'));
    elements.filter(|element| !element.is_empty()).map(literal).collect()
}

fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// The name of a setting, of which each part is an identifier.
fn dotted(name: &str) -> String {
    name.split('.').map(identifier).collect::<Vec<_>>().join(".")
}

/// A literal whatever `standard_conforming_strings` says.
fn literal(text: &str) -> String {
    format!("E'{}'", text.replace('\\', r"\\").replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_values_stay_what_they_are() {
        assert_eq!(identifier("a\"; drop"), "\"a\"\"; drop\"");
        assert_eq!(dotted("app.tenant"), "\"app\".\"tenant\"");
        assert_eq!(literal(r"it's C:\x"), r"E'it''s C:\\x'");
        assert_eq!(values("search_path", r#""$user", public"#), ["E'$user'", "E'public'"]);
        assert_eq!(values("shared_preload_libraries", ""), Vec::<String>::new());
        assert_eq!(values("app.x", "a, b"), ["E'a, b'"]);
    }
}
