//! What the superuser of a branch cannot do: reach another branch, the store, the server or its
//! secrets.
//!
//! `COPY FROM PROGRAM` runs any program as the user of the branch's Postgres, so each attempt is a
//! real one.

#![expect(clippy::unwrap_used, reason = "the lint knows test functions, but not their helpers")]

use api::types::{CreateBranch, CreateImport, ImportMode, Network, NetworkChoice, UpdateBranch};
use coppice::{Directory, Server};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Two branches that run; the second is what the first tries to get at.
struct Neighbours {
    server: Server,
    /// The socket of the second one's Postgres.
    socket: PathBuf,
    /// Its process.
    pid: String,
    /// Its data directory.
    data: PathBuf,
}

impl Neighbours {
    fn start(args: &[&str]) -> Self {
        let server = Server::start_with(Arc::new(Directory::new()), args);
        for name in ["mine", "other"] {
            server
                .client()
                .create(&CreateBranch { name: name.into(), ..CreateBranch::default() })
                .unwrap();
            server.sql(name, "create table output (line text)").unwrap();
        }
        server.sql("other", "create table secret as select 'of the other' as line").unwrap();
        let other = server.client().get("other").unwrap();
        let socket = PathBuf::from(other.socket.unwrap());
        let pid = std::fs::read_to_string(socket.with_file_name("postgres.pid")).unwrap();
        let data = server.data().join("mount").join(&other.timeline);
        Self { server, socket, pid: pid.trim().to_owned(), data }
    }

    /// What a program says, run by the superuser of the first branch, and how it ended.
    fn run(&self, program: &str) -> String {
        let program = format!("({program}) 2>&1; echo \"exit $?\"").replace('\'', "''");
        // Lines are taken as they are.
        let form = r"(format csv, delimiter E'\x01', quote E'\x02')";
        let sql = format!(
            "truncate output; copy output from program '{program}' {form}; \
             select string_agg(line, E'\n') from output"
        );
        self.server.sql("mine", &sql).unwrap()
    }

    #[track_caller]
    fn refused(&self, program: &str) {
        let said = self.run(program);
        assert!(!said.ends_with("exit 0"), "{program} worked: {said}");
        let why = ["ermission denied", "not permitted"];
        assert!(
            why.iter().any(|why| said.contains(why)),
            "{program} failed for another reason: {said}"
        );
    }
}

fn user_of(pid: &str) -> u32 {
    std::fs::metadata(Path::new("/proc").join(pid)).unwrap().uid()
}

#[test]
fn libpq_inside_a_branch_reaches_that_branch() {
    let n = Neighbours::start(&[]);
    let url = n.server.url("mine");
    let password = url.split([':', '@']).nth(2).unwrap();
    let who = "select current_user || ' ' || current_setting('cluster_name')";
    let here = n.server.sql("mine", who).unwrap();
    let said = n.run(&format!("PGPASSWORD={password} psql -XAtc \"{who}\" app"));
    assert_eq!(said, format!("{here}\nexit 0"));
    let linked = format!(
        "create extension dblink; \
         select * from dblink('dbname=app password={password}', $$ {who} $$) as t (who text)"
    );
    assert_eq!(n.server.sql("mine", &linked).unwrap(), here);
}

#[test]
fn a_superuser_of_one_branch_gets_at_nothing_else() {
    let n = Neighbours::start(&[]);
    assert!(n.run("id -u").ends_with("exit 0"));
    let me: u32 = n.run("id -u").lines().next().unwrap().parse().unwrap();
    assert!(
        me > 1_000_000 && me != user_of(&n.pid) && user_of(&n.pid) > 1_000_000,
        "{me} {}",
        user_of(&n.pid)
    );
    assert_eq!(n.run("id -G").lines().next().unwrap(), me.to_string(), "no other group");
    assert_eq!(
        n.run("cat PG_VERSION && touch x && rm x").lines().last(),
        Some("exit 0"),
        "its own is its own"
    );

    let (data, root) = (n.data.display(), n.server.data());
    let root = root.display();
    // Other branches, their files and their processes.
    n.refused(&format!("ls {root}/mount"));
    n.refused(&format!("ls {data}"));
    n.refused(&format!("cat {data}/PG_VERSION"));
    n.refused(&format!("cat {data}/postgresql.auto.conf"));
    n.refused(&format!("touch {data}/mine"));
    n.refused(&format!("chmod 755 {data}"));
    n.refused(&format!("ln -s {data} link && cat link/PG_VERSION"));
    n.refused(&format!("kill -TERM {}", n.pid));
    n.refused(&format!("kill -0 {}", n.pid));
    n.refused(&format!("cat /proc/{}/environ", n.pid));
    n.refused(&format!("ls /proc/{}/fd", n.pid));
    n.refused(&format!("ls -l /proc/{}/cwd/", n.pid));
    n.refused(&format!("head -c 1 /proc/{}/mem", n.pid));
    n.refused(&format!("ls {}", n.socket.parent().unwrap().display()));
    n.refused(&format!(
        "perl -e 'use Socket; socket(S, PF_UNIX, SOCK_STREAM, 0); connect(S, sockaddr_un(q({}))) \
         or die $!'",
        n.socket.display()
    ));
    // The store, the server and its secrets.
    n.refused(&format!("ls {root}"));
    n.refused(&format!("cat {root}/api-token"));
    n.refused(&format!("ls {root}/store"));
    n.refused(&format!("head -c 1 {root}/store/catalog"));
    n.refused(&format!("cat {root}/tls/ca.key"));
    n.refused(&format!("kill -0 {}", n.server.pid()));
    n.refused(&format!("cat /proc/{}/environ", n.server.pid()));
    // The same with what Postgres itself can read and write.
    for sql in [
        format!("select pg_read_file('{data}/PG_VERSION')"),
        format!("select pg_read_file('{root}/api-token')"),
        format!("copy output to '{data}/mine'"),
        format!("select lo_create(4242); select lo_export(4242, '{data}/mine')"),
    ] {
        let error = n.server.sql("mine", &sql).unwrap_err();
        assert!(error.contains("ermission denied"), "{sql}: {error}");
    }
    assert_eq!(n.server.sql("other", "select line from secret").unwrap(), "of the other");
}

impl Neighbours {
    /// Ways from the first branch to a TCP port or a Unix socket, all as its superuser.
    fn connect(&self, host: &str, port: u16) -> Vec<String> {
        let target = format!("host={host} port={port} dbname=app connect_timeout=3");
        let foreign = format!(
            "create server far foreign data wrapper postgres_fdw options (host '{host}', \
             port '{port}', dbname 'app', connect_timeout '3'); \
             create user mapping for postgres server far options (user 'postgres', password 'x'); \
             create foreign table there (n int) server far; select * from there"
        );
        let sql = [
            format!("select dblink_connect('{target} user=postgres password=x')"),
            format!("begin; {foreign}"),
        ];
        let mut said: Vec<_> =
            sql.iter().map(|sql| self.server.sql("mine", sql).unwrap_err()).collect();
        said.push(self.run(&format!("psql '{target} user=postgres' -c 'select 1'")));
        said
    }
}

#[test]
fn a_branch_reaches_nobody_over_the_network() {
    use std::net::TcpListener;
    let n = Neighbours::start(&[]);
    n.server.sql("mine", "create extension dblink; create extension postgres_fdw").unwrap();
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    for port in [port, n.server.proxy.port()] {
        for error in n.connect("127.0.0.1", port) {
            assert!(error.contains("onnection refused"), "port {port}: {error}");
        }
    }
    // Beyond the machine there is not even a route.
    for error in n.connect("192.0.2.1", 5432) {
        assert!(error.contains("etwork is unreachable"), "{error}");
    }
    assert!(listener.accept().is_err(), "somebody came through");
    assert!(n.run("cat /sys/class/net/lo/operstate /proc/net/dev").ends_with("exit 0"));
    // The proxy's Unix socket is open to all users of the machine, but not to branches.
    let proxy = n.server.data().join("proxy");
    for error in n.connect(&proxy.display().to_string(), n.server.proxy.port()) {
        assert!(error.contains("may not connect to branches"), "{error}");
    }
    // Only who asks for it gets out.
    let host = UpdateBranch { network: Some(NetworkChoice::Host), ..UpdateBranch::default() };
    let branch = n.server.client().update("mine", &host).unwrap();
    assert_eq!(branch.network, Network::Host);
    n.server.sql("mine", "select 1").unwrap();
    for error in n.connect("127.0.0.1", n.server.proxy.port()) {
        assert!(!error.contains("onnection refused"), "{error}");
    }
    let child = CreateBranch {
        name: "child".into(),
        parent: Some("mine".into()),
        ..CreateBranch::default()
    };
    let child = n.server.client().create(&child).unwrap();
    assert_eq!(child.network, Network::None, "nobody asked for it");
}

#[test]
fn the_servers_door_is_closed_to_everybody_else() {
    let n = Neighbours::start(&[]);
    n.server.sql("mine", "create extension dblink").unwrap();
    // A client, who may know no password of the role, or have set one.
    n.server.sql("mine", "alter role coppice password 'mine'").unwrap();
    let url = n.server.url("mine");
    let password = url.split([':', '@']).nth(2).unwrap().to_owned();
    let as_role = url.replace("postgres.mine:", "coppice.mine:").replace(&password, "mine");
    let options = format!("{as_role}?options=-c%20role%3Dpostgres");
    for url in [&as_role, &options] {
        let said = std::process::Command::new(coppice::postgres_program("psql"))
            .args(["-XAtqc", "select 1", url])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&said.stderr).into_owned();
        assert!(said.contains("role \"coppice\" is the server's own"), "{said}");
    }
    // Another branch, whose superuser may run any program.
    let sockets = n.socket.parent().unwrap().display();
    n.refused(&format!("psql 'host={sockets} user=coppice dbname=app' -c 'select 1'"));
    // The branch itself, and a function of a role that may do nothing.
    let own = PathBuf::from(n.server.client().get("mine").unwrap().socket.unwrap());
    let own = own.parent().unwrap().display();
    let said = n.run(&format!("psql 'host={own} user=coppice dbname=app' -c 'select 1'"));
    assert!(said.contains("Peer authentication failed"), "{said}");
    let error = n.server.sql(
        "mine",
        &format!(
            "create role nobody; create function get_in() returns text language sql as $$ \
             select dblink_connect('host={own} user=coppice dbname=app') $$; \
             grant execute on all functions in schema public to nobody; \
             set role nobody; select get_in()"
        ),
    );
    let error = error.unwrap_err();
    assert!(error.contains("authentication failed") || error.contains("password"), "{error}");
}

#[test]
fn a_branch_belongs_to_its_own_user_again_after_a_reset_and_a_restart() {
    let mut n = Neighbours::start(&[]);
    let user = |server: &Server| {
        let socket = PathBuf::from(server.client().get("mine").unwrap().socket.unwrap());
        std::fs::metadata(socket.parent().unwrap()).unwrap().uid()
    };
    let before = user(&n.server);
    n.server.client().reset("mine", &api::types::ResetBranch::default()).unwrap();
    assert_eq!(n.server.sql("mine", "create table t (); select 1").unwrap(), "1");
    assert_ne!(user(&n.server), before, "another timeline, another user");
    n.server.stop();
    n.server.restart();
    assert_eq!(
        n.server
            .sql("other", "insert into secret values ('more'); select count(*) from secret")
            .unwrap(),
        "2"
    );
}

#[test]
fn all_run_as_one_user_if_that_is_wanted() {
    let n = Neighbours::start(&["--compute-uids", "0"]);
    let me: u32 = n.run("id -u").lines().next().unwrap().parse().unwrap();
    assert_eq!(me, user_of(&n.pid));
}

/// Every file below `directory` that others than its owner may read.
fn readable(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let Ok(about) = entry.metadata() else { continue };
        if about.is_dir() {
            if entry.file_name() != "mount" {
                readable(&entry.path(), found);
            }
        } else if about.is_file() && about.mode() & 0o044 != 0 {
            found.push(entry.path());
        }
    }
}

#[test]
fn secrets_are_in_no_log_argument_message_or_readable_file() {
    let server = Server::start_with(Arc::new(Directory::new()), &[]);
    let client = server.client();
    let url = server.url("main");
    let password = url.split([':', '@']).nth(2).unwrap().to_owned();
    let secrets = [server.token(), password.clone(), "s3cret-of-the-source".to_owned()];
    client.create(&CreateBranch { name: "b".into(), ..CreateBranch::default() }).unwrap();
    server.sql("b", "select 1").unwrap();
    let mut said = Vec::new();
    // An import that fails, wrong passwords, wrong tokens.
    let source = "postgresql://postgres:s3cret-of-the-source@127.0.0.1:1/app";
    let import =
        CreateImport { name: "copy".into(), source: source.into(), mode: ImportMode::default() };
    said.push(format!("{:?} {import:?}", client.start_import(&import).unwrap_err()));
    let wrong = url.replace(&password, "wrong");
    said.push(server.psql("b", &["-XAtqc", "select 1", &wrong]).stderr.escape_ascii().to_string());
    let mut arguments = String::new();
    for process in std::fs::read_dir("/proc").unwrap().flatten() {
        let text = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        let parent = std::fs::read_to_string(process.path().join("stat")).unwrap_or_default();
        let ours = format!(" {} ", server.pid());
        if parent.contains(&ours) || String::from_utf8_lossy(&text).contains("coppice") {
            arguments.push_str(&String::from_utf8_lossy(&text));
        }
    }
    assert!(arguments.contains("cluster_name=coppice"), "no process was looked at");
    let mut files = Vec::new();
    readable(&server.data(), &mut files);
    assert!(!files.is_empty(), "no file was looked at");
    for secret in &secrets {
        assert!(!server.log().contains(secret), "the log has a secret");
        assert!(!arguments.contains(secret), "an argument is a secret");
        assert!(said.iter().all(|said| !said.contains(secret)), "a message has a secret: {said:?}");
        for file in &files {
            let bytes = std::fs::read(file).unwrap();
            let found = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
            assert!(!found, "{} has a secret, and others may read it", file.display());
        }
    }
}
