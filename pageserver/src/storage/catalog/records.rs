//! The records of the catalog, and the history of its format.
//!
//! A record is a JSON object in the table of its kind, under a key of text. `docs/format.md` lists
//! the fields.
//!
//! # Versions
//!
//! 1. Tables `timelines` (by number) and `branches` (by name).
//! 2. Changes go to a journal first. Fields with a default were added to records of versions 1
//!    and 2: `lanes`, `time_ns`, `begins_ns`, `logical_bytes`, `newest_mark_ns` and `marks`.
//! 3. Each kind of record has a table by text keys, made at every start. The journal's changes are
//!    rows of these tables. A field that a build does not know is an error.
//! 4. Field `allowance` of branches.
//! 5. Fields `label`, `login` and `history_s` of branches.
//!
//! To add a field, give it `#[serde(default)]`. To add a kind, write its struct and a line in
//! `kinds!`. Either one raises `FORMAT`, with a step in `migrate.rs` if there is something to
//! rewrite: an older build then refuses the store and drops nothing.

use crate::error::{Error, Result};
use crate::secret::Secret;
use crate::storage::page::{LaneKind, PerLane, Position, TimelineId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Version of the catalog that this build writes.
pub(super) const FORMAT: u64 = 5;

/// Number of the first branch, the default one whatever it is called later.
pub const DEFAULT_BRANCH: u64 = 1;

/// Where a timeline comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AncestorRecord {
    /// The timeline it was forked from.
    pub timeline: u64,
    /// What it sees of the ancestor's data lane and write-ahead lane.
    pub at: PerLane<Position>,
    /// Newest positions of the ancestor's lanes at the fork, known to be durable; 0 if it was not
    /// open.
    pub synced: PerLane<Position>,
    /// The moment of the ancestor that it shows, in nanoseconds since 1970.
    #[serde(default)]
    pub time_ns: i64,
    /// From when on it has a past of its own; 0 if that begins with its first mark.
    #[serde(default)]
    pub begins_ns: i64,
    /// Bytes of the files in both lanes as their user sees them there.
    #[serde(default)]
    pub logical_bytes: PerLane<u64>,
}

/// A timeline.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TimelineRecord {
    /// None for a root.
    pub ancestor: Option<AncestorRecord>,
    /// What of its lanes is sealed, by [`LaneKind`].
    #[serde(default)]
    pub lanes: PerLane<LaneRecord>,
}

/// The sealed part of a lane.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LaneRecord {
    /// Everything up to here is in layers.
    pub sealed: Position,
    /// First file of the log that goes on behind; those before are done with.
    pub sequence: u32,
    /// The layers, newest first.
    pub layers: Vec<LayerRecord>,
    /// Bytes of the lane's files as their user sees them, those inherited included, when it was
    /// last sealed.
    #[serde(default)]
    pub logical_bytes: u64,
    /// The newest mark among what is sealed, in nanoseconds since 1970; 0 if there is none.
    #[serde(default)]
    pub newest_mark_ns: i64,
    /// How many marks there are among it.
    #[serde(default)]
    pub marks: u64,
}

impl LaneRecord {
    /// Whether a lane can be like this: its layers are different ones of bearable length, and its
    /// log can go on. Sizes of files are no part of that: a user of a branch sets them at will.
    pub(super) fn is_sound(&self) -> bool {
        const MAX_BYTES: u64 = 1 << 60;
        let bytes = self.layers.iter().try_fold(0_u64, |sum, layer| sum.checked_add(layer.bytes));
        let numbers: BTreeSet<u64> = self.layers.iter().map(|layer| layer.number).collect();
        bytes.is_some_and(|bytes| bytes <= MAX_BYTES)
            && numbers.len() == self.layers.len()
            && self.sequence <= u32::MAX >> 1
    }
}

/// A sealed layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerRecord {
    /// Its number.
    pub number: u64,
    /// Length of the file.
    pub bytes: u64,
}

/// A branch: a name and its settings, pointing at a timeline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BranchRecord {
    /// Stays the same when the branch is renamed or reset.
    pub id: u64,
    /// Where its data is.
    pub timeline: u64,
    /// Branch it was made from; none for a root.
    pub parent: Option<u64>,
    /// When it was made, nanoseconds since 1970.
    pub created_ns: i64,
    /// When its data was last taken from the parent.
    pub forked_ns: i64,
    /// Refuses reset and delete.
    pub protected: bool,
    /// Password of the role of its login if the server set it.
    pub password: Option<Secret>,
    /// What its Postgres may do beyond its own data. Branches made from it do not have it.
    #[serde(default, skip_serializing_if = "Allowance::is_default")]
    pub allowance: Allowance,
    /// What names it as part of a host name and behind a role, whatever it is called later; empty
    /// for what builds before format 5 made of its name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub label: String,
    /// Whom its URL is for.
    #[serde(default, skip_serializing_if = "Login::is_default")]
    pub login: Login,
    /// How many seconds of its past are kept; as many as the server's settings say if none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub history_s: Option<u64>,
}

impl BranchRecord {
    /// A root of default settings, made at this time.
    pub fn root(id: u64, timeline: TimelineId, created_ns: i64) -> Self {
        Self {
            id,
            timeline: timeline.0,
            parent: None,
            created_ns,
            forked_ns: created_ns,
            protected: false,
            password: None,
            allowance: Allowance::default(),
            label: String::new(),
            login: Login::default(),
            history_s: None,
        }
    }
}

/// Whom the URL of a branch is for, and which of its databases.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Login {
    /// The role.
    pub role: String,
    /// The database.
    pub database: String,
}

/// What a first start makes.
impl Default for Login {
    fn default() -> Self {
        Self { role: "postgres".to_owned(), database: "app".to_owned() }
    }
}

impl Login {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// What a branch's Postgres may do beyond its own data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Allowance {
    /// Its network; that of the server's settings if none.
    #[serde(default)]
    pub network: Option<BranchNetwork>,
    /// Whether the jobs of `pg_cron` run.
    #[serde(default)]
    pub scheduled_jobs: bool,
}

impl Allowance {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// The network that a branch's Postgres has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum BranchNetwork {
    /// Nothing but a loopback interface of its own.
    None,
    /// That of the machine.
    Host,
}

/// A kind of record.
pub trait Record: Clone + PartialEq + Serialize + DeserializeOwned + 'static {
    /// Name of its table.
    const TABLE: &'static str;
    /// The record as one of any kind.
    fn into_stored(self) -> Stored;
    /// The record of this kind, if it is one.
    fn from_stored(stored: &Stored) -> Option<&Self>;
}

/// Declares the kinds: for each a table, a variant of [`Stored`], and a [`Record`].
macro_rules! kinds {
    ($($(#[$condition:meta])* $kind:ident($record:ty) = $table:literal;)+) => {
        /// A record of any kind.
        #[derive(Clone, Debug, PartialEq, Serialize)]
        #[serde(untagged)]
        pub enum Stored {$(
            $(#[$condition])*
            #[doc = concat!("In the table `", $table, "`.")]
            $kind($record),
        )+}

        /// The tables of all kinds.
        pub(in crate::storage) const TABLES: &[&str] = &[$($(#[$condition])* $table),+];

        impl Stored {
            /// Reads the value under `key` of a table.
            pub(in crate::storage) fn decode(table: &str, key: &str, json: &[u8]) -> Result<Self> {
                match table {
                    $($(#[$condition])* $table => decode(table, key, json).map(Self::$kind),)+
                    _ => Err(Error::corrupt(format!("the catalog has no table \"{table}\""))),
                }
            }
        }

        $($(#[$condition])* impl Record for $record {
            const TABLE: &'static str = $table;

            fn into_stored(self) -> Stored {
                Stored::$kind(self)
            }

            fn from_stored(stored: &Stored) -> Option<&Self> {
                #[allow(irrefutable_let_patterns, reason = "there may be one kind only")]
                if let Stored::$kind(record) = stored { Some(record) } else { None }
            }
        })+
    };
}

kinds! {
    Timeline(TimelineRecord) = "timeline";
    Branch(BranchRecord) = "branch";
    #[cfg(test)]
    Note(NoteRecord) = "note";
}

/// A kind that only the tests have: a new one needs no more than this.
#[cfg(test)]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoteRecord {
    /// Any text.
    pub text: String,
}

/// Changes that become durable and visible together.
#[derive(Clone, Debug, Default)]
pub struct Update {
    /// Timelines to add.
    pub add_timelines: Vec<(TimelineId, TimelineRecord)>,
    /// What of a lane is sealed now; refused if the timeline is gone.
    pub put_lanes: Vec<(TimelineId, LaneKind, LaneRecord)>,
    /// Timelines that hold all they show from now on, in these lanes, and have no ancestor.
    pub flatten: Vec<(TimelineId, PerLane<LaneRecord>)>,
    /// Nameless timelines that were held for an import and are no longer.
    pub release: Vec<TimelineId>,
    /// What is put and removed of other kinds, in this order.
    pub(in crate::storage) rows: Vec<Row>,
}

impl Update {
    /// Adds or replaces the record under `key`.
    #[must_use]
    pub fn put<R: Record>(mut self, key: &str, record: R) -> Self {
        self.rows.push(Row::put(key, record));
        self
    }

    /// Removes the record under `key`, if there is one.
    #[must_use]
    pub fn remove<R: Record>(mut self, key: &str) -> Self {
        self.rows.push(Row::remove::<R>(key));
        self
    }
}

/// What a change says of one key of a table: its record, or that there is none.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::storage) struct Row {
    pub(super) table: &'static str,
    pub(super) key: String,
    pub(in crate::storage) record: Option<Stored>,
}

impl Row {
    pub(super) fn put<R: Record>(key: &str, record: R) -> Self {
        Self { table: R::TABLE, key: key.to_owned(), record: Some(record.into_stored()) }
    }

    pub(super) fn remove<R: Record>(key: &str) -> Self {
        Self { table: R::TABLE, key: key.to_owned(), record: None }
    }

    /// A row as a file has it.
    pub(in crate::storage) fn decode(table: &str, key: &str, json: Option<&[u8]>) -> Result<Self> {
        let known = TABLES.iter().find(|known| **known == table);
        let Some(table) = known else {
            return Err(Error::corrupt(format!("the catalog has no table \"{table}\"")));
        };
        let record = json.map(|json| Stored::decode(table, key, json)).transpose()?;
        let row = Self { table, key: key.to_owned(), record };
        if *table == TimelineRecord::TABLE && row.timeline().is_none() {
            let detail = format!("the catalog has a timeline under the key {key:?}");
            return Err(Error::corrupt(detail));
        }
        Ok(row)
    }

    /// The key of a timeline in its table.
    pub(in crate::storage) fn timeline_key(id: TimelineId) -> String {
        id.to_string()
    }

    /// The timeline that the key is of.
    pub(super) fn timeline(&self) -> Option<TimelineId> {
        let id: TimelineId = self.key.parse().ok()?;
        (Self::timeline_key(id) == self.key).then_some(id)
    }
}

pub(in crate::storage) fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value)
        .unwrap_or_else(|error| panic!("a catalog value has no JSON form: {error}"))
}

pub(super) fn decode<T: DeserializeOwned>(table: &str, key: &str, json: &[u8]) -> Result<T> {
    serde_json::from_slice(json).map_err(|error| {
        Error::corrupt(format!("the catalog's value of {table} \"{key}\" is damaged: {error}"))
    })
}
