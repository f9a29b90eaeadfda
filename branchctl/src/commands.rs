//! One function per verb, and how each finds the server.

use std::env;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use api::client::{Client, read_token};
use api::durations::format_duration;
use api::types::{
    BranchList, Connection, CreateBranch, CreateImport, ImportMode, ImportState, Moment,
    NetworkChoice, NewPassword, ResetBranch, RestoreBranch, UpdateBranch, UpdateSettings,
};
use clap::CommandFactory;
use jiff::Timestamp;

use crate::args::{Args, Command, Format, NetworkArg, Switch, Target};
use crate::failure::{Exit, Failure};
use crate::{import, logs, output, psql};

/// Bytes that are read of a password at most; the server refuses most of them.
const STDIN_BYTES_MAX: u64 = 4096;

/// Runs one command.
pub(crate) fn run(args: &Args) -> Result<Exit, Failure> {
    if let Command::Completions { shell } = &args.command {
        // Collected first: the generator would panic on a closed pipe.
        let mut script = Vec::new();
        clap_complete::generate(*shell, &mut Args::command(), "branchctl", &mut script);
        return print(&String::from_utf8_lossy(&script)).map(|()| Exit::Done);
    }
    let client = Client::new(&args.api, find_token(args.token_file.as_deref())?)?;
    let format = args.output;
    match &args.command {
        Command::List { prefix } => {
            let list = BranchList { branches: client.list_prefix(prefix)?, next: None };
            show(format, &list, || output::branches(&list.branches, Timestamp::now()))?;
        }
        Command::Show { name } => {
            let branch = client.get(name)?;
            show(format, &branch, || output::branch(&branch, Timestamp::now()))?;
        }
        Command::History { name, keep: None } => {
            let history = client.history(name)?;
            show(format, &history, || output::history(&history))?;
        }
        Command::Logs { name, follow, lines } => {
            let print_lines = if *follow { logs::follow } else { logs::last };
            print_lines(&client, format, name, *lines)?;
        }
        Command::Delete { names } => return delete(&client, format, names),
        Command::Url { target } => {
            let connection = connection(&client, target)?;
            show(format, &connection, || format!("{}\n", connection.url))?;
        }
        Command::Psql { target, args } => {
            let connection = connection(&client, target)?;
            return Err(psql::exec(&connection.url, args));
        }
        Command::Set { name, set, unset } => {
            let (set, unset) = (set.iter().cloned().collect(), unset.clone());
            let outcome = client.set(name, &UpdateSettings { set, unset })?;
            show(format, &outcome, || output::settings(name, &outcome))?;
        }
        Command::Password { name, role, stdin } => {
            let password = stdin.then(read_password).transpose()?;
            let request = NewPassword { role: role.clone(), password };
            let connection = client.password(name, &request)?;
            show(format, &connection, || format!("{}\n", connection.url))?;
        }
        Command::Import { name, from, follow } => {
            return import_command(
                &client,
                format,
                name.as_deref(),
                from.as_deref(),
                follow.as_deref(),
            );
        }
        Command::Du => {
            let usage = client.usage()?;
            show(format, &usage, || output::usage(&usage))?;
        }
        Command::Status => {
            let status = client.status()?;
            show(format, &status, || output::status(&status))?;
        }
        change => change_one(&client, format, change)?,
    }
    Ok(Exit::Done)
}

fn connection(client: &Client, target: &Target) -> Result<Connection, Failure> {
    let (database, role) = (target.database.as_deref(), target.role.as_deref());
    Ok(client.connection(&target.name, database, role)?)
}

/// Reads a password from standard input: the first line.
fn read_password() -> Result<String, Failure> {
    let mut line = String::new();
    let read = io::stdin().take(STDIN_BYTES_MAX).read_to_string(&mut line);
    read.map_err(|error| Failure::Local(format!("cannot read the password: {error}")))?;
    Ok(line.lines().next().unwrap_or_default().to_owned())
}

/// The verbs that change one branch and show what became of it.
fn change_one(client: &Client, format: Format, command: &Command) -> Result<(), Failure> {
    let protect =
        |protected| UpdateBranch { protected: Some(protected), ..UpdateBranch::default() };
    let branch = match command {
        Command::Create { name, parent, at, history } => {
            client.create(&creation(name, parent, at, *history))?
        }
        Command::Ensure { name, parent, at, history } => {
            client.ensure(name, &creation(name, parent, at, *history))?.0
        }
        Command::History { name, keep: Some(keep) } => {
            let history = Some(format_duration(*keep));
            client.update(name, &UpdateBranch { history, ..UpdateBranch::default() })?
        }
        Command::Reset { name, at } => client.reset(name, &ResetBranch { at: at.clone() })?,
        Command::Restore { name, at, keep_as } => {
            client.restore(name, &RestoreBranch { at: at.clone(), keep_as: keep_as.clone() })?
        }
        Command::Rename { old, new } => {
            let rename = UpdateBranch { name: Some(new.clone()), ..UpdateBranch::default() };
            client.update(old, &rename)?
        }
        Command::Protect { name } => client.update(name, &protect(true))?,
        Command::Unprotect { name } => client.update(name, &protect(false))?,
        Command::Network { name, network } => {
            let network = match network {
                NetworkArg::None => NetworkChoice::None,
                NetworkArg::Host => NetworkChoice::Host,
                NetworkArg::Default => NetworkChoice::Default,
            };
            let change = UpdateBranch { network: Some(network), ..UpdateBranch::default() };
            client.update(name, &change)?
        }
        Command::Jobs { name, jobs } => {
            let scheduled_jobs = Some(*jobs == Switch::On);
            client.update(name, &UpdateBranch { scheduled_jobs, ..UpdateBranch::default() })?
        }
        Command::Suspend { name } => client.suspend(name)?,
        Command::Wake { name } => client.wake(name)?,
        other => unreachable!("{other:?} does not change one branch"),
    };
    show(format, &branch, || output::branches(std::slice::from_ref(&branch), Timestamp::now()))
}

fn creation(
    name: &str,
    parent: &Option<String>,
    at: &Option<Moment>,
    history_s: Option<u64>,
) -> CreateBranch {
    let (name, parent, at) = (name.to_owned(), parent.clone(), at.clone());
    CreateBranch { name, parent, at, history: history_s.map(format_duration) }
}

/// Deletes all that can be deleted; the first failure decides the exit code. The API's answer is
/// empty, and so is the output as JSON.
fn delete(client: &Client, format: Format, names: &[String]) -> Result<Exit, Failure> {
    let mut exit = Exit::Done;
    for name in names {
        match client.delete(name) {
            Ok(()) if format == Format::Table => print(&format!("{name} deleted\n"))?,
            Ok(()) => {}
            // Alone, it is reported like every other command's failure.
            Err(error) if names.len() == 1 => return Err(error.into()),
            Err(error) => {
                let failure = Failure::from(error);
                eprintln!("branchctl: {name}: {failure}");
                if exit == Exit::Done {
                    exit = failure.exit();
                }
            }
        }
    }
    if exit == Exit::Done { Ok(exit) } else { Err(Failure::Told(exit)) }
}

fn import_command(
    client: &Client,
    format: Format,
    name: Option<&str>,
    from: Option<&str>,
    follow: Option<&str>,
) -> Result<Exit, Failure> {
    let started = match (name, from, follow) {
        (_, _, Some(id)) => client.import(id)?,
        (Some(name), Some(source), None) => client.start_import(&CreateImport {
            name: name.to_owned(),
            source: source.to_owned(),
            mode: ImportMode::Physical,
        })?,
        _ => {
            eprintln!("branchctl: give the source with --from URL or in COPPICE_IMPORT_URL");
            return Ok(Exit::Usage);
        }
    };
    let import = import::follow(client, started)?;
    if format == Format::Json || import.state != ImportState::Failed {
        show(format, &import, || output::import(&import))?;
    }
    if format == Format::Table && import.state == ImportState::Done {
        print(&format!("{}\n", client.connection(&import.name, None, None)?.url))?;
    }
    import::outcome(&import)
}

/// Prints an answer in the chosen format.
fn show(
    format: Format,
    answer: &impl serde::Serialize,
    table: impl FnOnce() -> String,
) -> Result<(), Failure> {
    match format {
        Format::Table => print(&table()),
        Format::Json => {
            let text = serde_json::to_string_pretty(answer).map_err(|error| {
                Failure::Local(format!("cannot print the answer as JSON: {error}"))
            })?;
            print(&format!("{text}\n"))
        }
    }
}

/// Writes to standard output. `println!` would panic when a pipe such as `| head` closes; that is
/// no failure.
fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::Local(format!("cannot write to standard output: {error}")))
        }
        _ => Ok(()),
    }
}

/// The API token: the file named on the command line, else the environment's token, else the
/// environment's file.
fn find_token(file: Option<&Path>) -> Result<Option<String>, Failure> {
    if let Some(path) = file {
        return Ok(Some(read_token(path)?));
    }
    if let Some(token) = env::var("COPPICE_TOKEN").ok().filter(|token| !token.trim().is_empty()) {
        return Ok(Some(token.trim().to_owned()));
    }
    match env::var_os("COPPICE_TOKEN_FILE").filter(|path| !path.is_empty()) {
        Some(path) => Ok(Some(read_token(&PathBuf::from(path))?)),
        None => Ok(None),
    }
}
