//! The command line's grammar and help.

use std::path::PathBuf;

use api::durations::parse_duration;
use api::types::Moment;
use clap::{Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

/// How `--help` ends.
const AFTER_HELP: &str = "\
A MOMENT is one of:
  2026-11-20T10:00:00Z  a time with its zone: just the transactions committed by then
  10m, 1h30m            so long ago
  0/16B3748             an LSN: just the transactions committed up to there
  1099511631231         a position: the state that was kept last at or before it

A DURATION is a number with its unit, such as 90s, 30m, 12h, 7d or 4w; or 0 for none.

Environment:
  COPPICE_API         URL of the server's HTTP API (default http://127.0.0.1:8432)
  COPPICE_TOKEN       the server's API token
  COPPICE_TOKEN_FILE  file that holds it: the server's DATA/api-token
  COPPICE_IMPORT_URL  source of `import`, so that its password is on no command line
  The token comes from --token-file, else COPPICE_TOKEN, else COPPICE_TOKEN_FILE.

Exit codes:
  0  done
  1  failed for another reason
  2  wrong arguments, or a request that the server finds invalid
  3  branch or import not found
  4  name taken, or the branch's state forbids it
  5  server not reached, or no answer from it
  6  token missing or wrong
  130  interrupted by Ctrl-C
  `psql` exits as psql does.";

/// Creates, resets and deletes branches of a Postgres database.
#[derive(Debug, Parser)]
#[command(name = "branchctl", version, after_help = AFTER_HELP)]
pub(crate) struct Args {
    /// How to print the answer; `json` is the API's own JSON
    #[arg(short, long, global = true, value_enum, value_name = "FORMAT")]
    #[arg(default_value_t = Format::Table)]
    pub(crate) output: Format,
    /// URL of the server's HTTP API
    #[arg(long, global = true, value_name = "URL", env = "COPPICE_API")]
    #[arg(default_value = api::client::DEFAULT_API)]
    pub(crate) api: String,
    /// File that holds the API token: `api-token` in the server's data directory
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// How answers are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people
    Table,
    /// For programs
    Json,
}

/// What a branch reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum NetworkArg {
    /// Nothing
    None,
    /// What the server's machine reaches, production too
    Host,
    /// What the server's --branch-network says
    Default,
}

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Switch {
    /// They do
    On,
    /// They do not
    Off,
}

/// One verb.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create a branch
    Create {
        /// Name of the new branch
        name: String,
        /// Branch to start from [default: the server's default branch]
        #[arg(long, value_name = "BRANCH")]
        parent: Option<String>,
        /// Moment of the parent to start from [default: its present state]
        #[arg(long, value_name = "MOMENT")]
        at: Option<Moment>,
        /// How long its past is kept [default: what the server's --branch-history says]
        #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
        history: Option<u64>,
    },
    /// Create a branch unless it exists; an existing one is left as it is
    Ensure {
        /// Name of the branch
        name: String,
        /// Branch to start from if it is created [default: the server's default branch]
        #[arg(long, value_name = "BRANCH")]
        parent: Option<String>,
        /// Moment of the parent to start from if it is created [default: its present state]
        #[arg(long, value_name = "MOMENT")]
        at: Option<Moment>,
        /// How long its past is kept if it is created [default: what the server's --branch-history
        /// says]
        #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
        history: Option<u64>,
    },
    /// List the branches, by name
    #[command(visible_alias = "ls")]
    List {
        /// Only those whose names begin with this, such as `feature/`
        #[arg(long, value_name = "TEXT", default_value = "")]
        prefix: String,
    },
    /// Show one branch
    Show {
        /// Name of the branch
        name: String,
    },
    /// Throw a branch's own changes away: back to its parent's present state, or a moment of its
    /// past
    Reset {
        /// Name of the branch
        name: String,
        /// Moment of the parent to go to [default: its present state]
        #[arg(long, value_name = "MOMENT")]
        at: Option<Moment>,
    },
    /// Take a branch back to a moment of its own past; name, URL and settings stay
    Restore {
        /// Name of the branch
        name: String,
        /// Moment to go back to; `branchctl history` shows which there are
        #[arg(long, value_name = "MOMENT")]
        at: Moment,
        /// Keep the state before the restore as a new branch of this name, so that it can be undone
        #[arg(long, value_name = "NAME")]
        keep_as: Option<String>,
    },
    /// Show the moments that a branch can be taken back to, or branched from; or say how long its
    /// past is kept
    History {
        /// Name of the branch
        name: String,
        /// Keep its past for so long from now on; a shorter time gives up what is older
        #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
        keep: Option<u64>,
    },
    /// Print what a branch's Postgres logged
    Logs {
        /// Name of the branch
        name: String,
        /// Go on with the lines to come, until Ctrl-C
        #[arg(long, short)]
        follow: bool,
        /// How many of the last lines, at most 10000
        #[arg(long, short = 'n', value_name = "NUMBER", default_value_t = 200)]
        lines: usize,
    },
    /// Delete branches; their children live on
    #[command(visible_alias = "rm")]
    Delete {
        /// Names of the branches
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Rename a branch
    Rename {
        /// Present name
        old: String,
        /// New name
        new: String,
    },
    /// Make reset and delete of a branch refuse
    Protect {
        /// Name of the branch
        name: String,
    },
    /// Allow reset and delete of a branch again
    Unprotect {
        /// Name of the branch
        name: String,
    },
    /// Say what a branch's Postgres reaches over the network; its sessions end
    Network {
        /// Name of the branch
        name: String,
        /// What it reaches
        #[arg(value_enum)]
        network: NetworkArg,
    },
    /// Let the jobs of pg_cron run on a branch, or not; its sessions end
    Jobs {
        /// Name of the branch
        name: String,
        /// Whether they run
        #[arg(value_enum)]
        jobs: Switch,
    },
    /// Change settings of a branch's Postgres, also of one that does not run or cannot start
    Set {
        /// Name of the branch
        name: String,
        /// Settings with their values, such as work_mem=64MB
        #[arg(value_name = "SETTING=VALUE", value_parser = parse_setting)]
        set: Vec<(String, String)>,
        /// Setting that is to have its default again
        #[arg(long, value_name = "SETTING")]
        unset: Vec<String>,
    },
    /// Give a role a new password and let it log in, whatever was done to it; print the URL
    Password {
        /// Name of the branch
        name: String,
        /// Role [default: that of `branchctl url`]; postgres is made anew if it is missing
        #[arg(long, short, value_name = "NAME")]
        role: Option<String>,
        /// Read the password from standard input instead of making one
        #[arg(long)]
        stdin: bool,
    },
    /// Stop a branch's Postgres; the next connection wakes it
    Suspend {
        /// Name of the branch
        name: String,
    },
    /// Start a branch's Postgres
    Wake {
        /// Name of the branch
        name: String,
    },
    /// Print a URL that connects to a branch, password included
    Url {
        #[command(flatten)]
        target: Target,
    },
    /// Run psql on a branch; the arguments behind `--` go to psql
    Psql {
        #[command(flatten)]
        target: Target,
        /// Arguments for psql, such as -c 'select 1'
        #[arg(last = true)]
        args: Vec<String>,
    },
    /// Copy a running Postgres server into a new root branch
    Import {
        /// Name of the new branch
        #[arg(required_unless_present = "follow")]
        name: Option<String>,
        /// Source: postgresql://ROLE:PASSWORD@HOST/DATABASE, whose role has REPLICATION
        #[arg(long, value_name = "URL", env = "COPPICE_IMPORT_URL", hide_env_values = true)]
        from: Option<String>,
        /// Follow an import that was started before
        #[arg(long, value_name = "ID", conflicts_with = "name")]
        follow: Option<String>,
    },
    /// Show who takes how much of the disk, every byte counted once
    Du,
    /// Show the server's status
    Status,
    /// Print a shell's completion script
    Completions {
        /// The shell
        shell: Shell,
    },
}

/// Reads `SETTING=VALUE`.
fn parse_setting(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write SETTING=VALUE")?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}

/// What to connect to.
#[derive(Debug, clap::Args)]
pub(crate) struct Target {
    /// Name of the branch
    pub(crate) name: String,
    /// Database [default: app, or the one that the branch's root was imported by]
    #[arg(long, short, value_name = "NAME")]
    pub(crate) database: Option<String>,
    /// Role; the URL has the password only of one whose password the server set [default: postgres,
    /// or the role that the branch's root was imported by]
    #[arg(long, short, value_name = "NAME")]
    pub(crate) role: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_grammar_is_consistent() {
        Args::command().debug_assert();
    }
}
