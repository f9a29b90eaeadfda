//! Computes on real Postgres: start, stop, share, fail, die, and never inherit.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod lab;

use lab::{Lab, ask, connect, copy, eventually, signal};
use nix::sys::signal::Signal;
use pageserver::compute::ComputeState;
use pageserver::compute::leftovers;
use pageserver::storage::page::TimelineId;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

const ONE: TimelineId = TimelineId(1);
const TWO: TimelineId = TimelineId(2);
/// Only a hang takes longer.
const SOON: Duration = Duration::from_secs(120);

#[tokio::test(flavor = "multi_thread")]
async fn starts_stops_and_tells_its_state() {
    let lab = Lab::new();
    let password = lab.timeline(ONE).await;
    let supervisor = lab.supervisor();
    assert_eq!(supervisor.state(ONE).state, ComputeState::Suspended);
    let (mut starts, mut stops) = (Vec::new(), Vec::new());
    for round in 0..10 {
        let begun = Instant::now();
        let lease = supervisor.wake(ONE).await.unwrap();
        starts.push(begun.elapsed().as_micros());
        let client = connect(lease.socket(), &password).await;
        assert_eq!(ask(&client, "SELECT 1").await, "1");
        let state = supervisor.state(ONE);
        assert_eq!((state.state, state.leases), (ComputeState::Running, 1));
        assert_eq!(state.socket.as_deref(), Some(lease.socket()));
        assert_eq!(supervisor.totals(), (1, 1));
        let begun = Instant::now();
        supervisor.suspend(ONE).await;
        stops.push(begun.elapsed().as_micros());
        assert_eq!(supervisor.state(ONE).state, ComputeState::Suspended);
        assert_eq!(lab.processes(ONE), Vec::<i32>::new(), "round {round}");
    }
    println!("start µs {starts:?}\nstop µs {stops:?}");
    assert!(!lab.run_dir().join(ONE.to_string()).exists(), "socket directory left");
    assert!(!lab.data(ONE).join("postmaster.pid").exists());
    assert_eq!(lab.directories.closed.load(Ordering::SeqCst), 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_wakers_start_one_postgres() {
    let lab = Lab::new();
    lab.timeline(ONE).await;
    let supervisor = lab.supervisor();
    // A waker that goes away does not take the start with it.
    let hasty = tokio::time::timeout(Duration::from_millis(5), supervisor.wake(ONE)).await;
    assert!(hasty.is_err());
    let wakers: Vec<_> = (0..100)
        .map(|_| {
            let supervisor = supervisor.clone();
            tokio::spawn(async move { supervisor.wake(ONE).await.unwrap() })
        })
        .collect();
    let mut leases = Vec::new();
    for waker in wakers {
        leases.push(waker.await.unwrap());
    }
    assert_eq!(supervisor.state(ONE).leases, 100);
    assert_eq!(lab.directories.opened.load(Ordering::SeqCst), 1);
    drop(leases);
    assert_eq!(supervisor.state(ONE).leases, 0);
    supervisor.stop_all().await;
    assert_eq!(supervisor.wake(ONE).await.unwrap_err().code, "shutting_down");
    assert_eq!(lab.processes(ONE), Vec::<i32>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn many_timelines_wake_at_once_and_end_together() {
    let lab = Lab::new();
    let supervisor = lab.supervisor();
    let timelines: Vec<_> = (1..=8).map(TimelineId).collect();
    for timeline in &timelines {
        lab.timeline(*timeline).await;
    }
    let begun = Instant::now();
    let wakers: Vec<_> = timelines
        .iter()
        .map(|timeline| {
            tokio::spawn({
                let (supervisor, timeline) = (supervisor.clone(), *timeline);
                async move { supervisor.wake(timeline).await.unwrap() }
            })
        })
        .collect();
    for waker in wakers {
        waker.await.unwrap();
    }
    println!("8 starts in {:?}", begun.elapsed());
    let begun = Instant::now();
    supervisor.stop_all().await;
    println!("8 stops in {:?}", begun.elapsed());
    assert!(timelines.iter().all(|timeline| lab.processes(*timeline).is_empty()));
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_ends_a_start_under_way() {
    let lab = Lab::new();
    lab.timeline(ONE).await;
    let supervisor = lab.supervisor();
    let waker = tokio::spawn({
        let supervisor = supervisor.clone();
        async move { supervisor.wake(ONE).await.map(drop) }
    });
    eventually("a process", SOON, || !lab.processes(ONE).is_empty()).await;
    supervisor.stop_all().await;
    assert_eq!(lab.processes(ONE), Vec::<i32>::new());
    // It may have got ready first.
    if let Err(error) = waker.await.unwrap() {
        assert_eq!(error.code, "shutting_down");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_start_shows_postgres_own_lines() {
    let lab = Lab::new();
    lab.timeline(ONE).await;
    let config = lab.data(ONE).join("postgresql.conf");
    let good = fs::read(&config).unwrap();
    let mut file = fs::File::options().append(true).open(&config).unwrap();
    writeln!(file, "shared_buffers = lots").unwrap();
    let supervisor = lab.supervisor();
    let error = supervisor.wake(ONE).await.unwrap_err();
    assert!(error.detail.contains("invalid value for parameter \"shared_buffers\""), "{error}");
    let state = supervisor.state(ONE);
    assert_eq!(state.state, ComputeState::Failed);
    assert!(state.failure.unwrap().contains("shared_buffers"));

    fs::write(&config, good).unwrap();
    let control = lab.data(ONE).join("global/pg_control");
    let mut bytes = fs::read(&control).unwrap();
    let intact = bytes.clone();
    bytes[40] ^= 0xff;
    fs::write(&control, bytes).unwrap();
    let error = supervisor.wake(ONE).await.unwrap_err();
    assert!(error.detail.contains("incorrect checksum in control file"), "{error}");

    fs::write(&control, intact).unwrap();
    drop(supervisor.wake(ONE).await.unwrap());
    assert_eq!(supervisor.state(ONE).failure, None);
    supervisor.stop_all().await;

    fs::write(lab.data(ONE).join("PG_VERSION"), "9\n").unwrap();
    let error = lab.supervisor().wake(ONE).await.unwrap_err();
    assert_eq!(error.code, "postgres_version");
    let missing = lab.supervisor().wake(TWO).await.unwrap_err();
    assert!(missing.detail.contains("data/00000002: No such file"), "{missing}");
    assert_eq!(
        lab.directories.opened.load(Ordering::SeqCst),
        lab.directories.closed.load(Ordering::SeqCst)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_postgres_is_reported_swept_and_woken_again() {
    let lab = Lab::new();
    let password = lab.timeline(ONE).await;
    let supervisor = lab.supervisor();
    let lease = supervisor.wake(ONE).await.unwrap();
    let client = connect(lease.socket(), &password).await;
    client.batch_execute("CREATE TABLE kept AS SELECT 1 AS n").await.unwrap();
    // A busy backend does not notice the death of its postmaster, and would write beside the next
    // one.
    let busy =
        tokio::spawn(
            async move { client.batch_execute("DO $$ BEGIN LOOP END LOOP; END $$").await },
        );
    tokio::time::sleep(Duration::from_millis(200)).await;
    let postmaster = lab.postmaster(ONE);
    let memory = shared_memory(&lab, postmaster);
    signal(postmaster, Signal::SIGKILL);
    eventually("failed", SOON, || supervisor.state(ONE).state == ComputeState::Failed).await;
    assert!(busy.await.unwrap().is_err());
    assert_eq!(lab.processes(ONE), Vec::<i32>::new());
    let failure = supervisor.state(ONE).failure.unwrap();
    assert!(failure.contains("signal: 9"), "{failure}");
    drop(lease);

    let lease = supervisor.wake(ONE).await.unwrap();
    let client = connect(lease.socket(), &password).await;
    assert_eq!(ask(&client, "SELECT n FROM kept").await, "1");
    supervisor.stop_all().await;
    assert_eq!(left_of(&memory), Vec::<String>::new(), "the next start cleans up shared memory");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crashed_backend_ends_postgres_and_the_next_wake_recovers() {
    let lab = Lab::new();
    let password = lab.timeline(ONE).await;
    let supervisor = lab.supervisor();
    let lease = supervisor.wake(ONE).await.unwrap();
    let client = connect(lease.socket(), &password).await;
    client.batch_execute("CREATE TABLE kept AS SELECT 1 AS n").await.unwrap();
    let backend = ask(&client, "SELECT pg_backend_pid()").await;
    signal(backend.parse().unwrap(), Signal::SIGKILL);
    eventually("failed", SOON, || supervisor.state(ONE).state == ComputeState::Failed).await;
    let failure = supervisor.state(ONE).failure.unwrap();
    assert!(failure.contains("was terminated by signal 9"), "{failure}");
    let again = supervisor.wake(ONE).await.unwrap();
    let client = connect(again.socket(), &password).await;
    assert_eq!(ask(&client, "SELECT n FROM kept").await, "1");
    supervisor.stop_all().await;
}

/// The System V segment and the files in `/dev/shm` of a running Postgres.
fn shared_memory(lab: &Lab, postmaster: i32) -> Vec<String> {
    let lock_file = fs::read_to_string(lab.data(ONE).join("postmaster.pid")).unwrap();
    let segment = lock_file.lines().nth(6).unwrap().split_whitespace().nth(1).unwrap();
    let maps = fs::read_to_string(format!("/proc/{postmaster}/maps")).unwrap();
    let files =
        maps.lines().filter_map(|line| line.find("/dev/shm/").map(|at| line[at..].to_owned()));
    let found: Vec<_> = files.chain([format!("segment {segment}")]).collect();
    assert_eq!(left_of(&found), found);
    found
}

fn left_of(memory: &[String]) -> Vec<String> {
    let segments = fs::read_to_string("/proc/sysvipc/shm").unwrap();
    let there = |name: &&String| match name.strip_prefix("segment ") {
        Some(id) => segments.lines().any(|line| line.split_whitespace().nth(1) == Some(id)),
        None => fs::exists(name).unwrap(),
    };
    memory.iter().filter(there).cloned().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_computes_sleep_and_clients_keep_them_awake() {
    let lab = Lab::new();
    let password = lab.timeline(ONE).await;
    let mut config = lab.config();
    config.suspend_after = Duration::from_millis(700);
    let supervisor = lab.supervisor_with(config);
    let lease = supervisor.wake(ONE).await.unwrap();
    let socket = lease.socket().to_owned();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(supervisor.state(ONE).state, ComputeState::Running, "a lease was out");
    // A client that came directly to the socket counts as well.
    let direct = connect(&socket, &password).await;
    drop(lease);
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(supervisor.state(ONE).state, ComputeState::Running, "a client was connected");
    assert_eq!(ask(&direct, "SELECT 1").await, "1");
    drop(direct);
    let gone = Instant::now();
    eventually("suspended", SOON, || supervisor.state(ONE).state == ComputeState::Suspended).await;
    println!("suspended {:?} after the last client", gone.elapsed());
    assert_eq!(lab.processes(ONE), Vec::<i32>::new());
    let lease = supervisor.wake(ONE).await.unwrap();
    connect(lease.socket(), &password).await;
    supervisor.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wakes_and_suspends_at_the_same_time_end_in_order() {
    let lab = Lab::new();
    lab.timeline(ONE).await;
    let supervisor = lab.supervisor();
    let tasks: Vec<_> = (0..40_u64)
        .map(|n| {
            let supervisor = supervisor.clone();
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(n * 7)).await;
                if n % 4 == 3 {
                    supervisor.suspend(ONE).await;
                } else {
                    drop(supervisor.wake(ONE).await.unwrap());
                }
            })
        })
        .collect();
    for task in tasks {
        tokio::time::timeout(SOON, task).await.expect("nobody waits for ever").unwrap();
    }
    supervisor.suspend(ONE).await;
    assert_eq!(lab.processes(ONE), Vec::<i32>::new());
    lab.directories.unwanted.store(true, Ordering::SeqCst);
    supervisor.drop_timeline(ONE).await;
    let refused = supervisor.wake(ONE).await.map(drop).expect_err("a dropped timeline stays down");
    assert_eq!(refused.code, "timeline_dropped");
    let opened = lab.directories.opened.load(Ordering::SeqCst);
    assert_eq!(opened, lab.directories.closed.load(Ordering::SeqCst));
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_gets_in_without_a_password() {
    let lab = Lab::new();
    let password = lab.timeline(ONE).await;
    let supervisor = lab.supervisor();
    let lease = supervisor.wake(ONE).await.unwrap();
    let sockets = lease.socket().parent().unwrap().to_str().unwrap();
    for role in ["postgres", lab.user.name.as_str(), "nobody"] {
        let (success, text) =
            lab.tool("psql", &["-w", "-h", sockets, "-U", role, "-c", "SELECT 1", "app"], &[]);
        assert!(!success && text.contains("no password supplied"), "{role}: {text}");
    }
    let login = ["-w", "-h", sockets, "-U", "postgres", "-Atc", "SELECT 1", "app"];
    let (success, text) = lab.tool("psql", &login, &[("PGPASSWORD", "wrong")]);
    assert!(!success && text.contains("password authentication failed"), "{text}");
    let (success, text) = lab.tool("psql", &login, &[("PGPASSWORD", &password)]);
    assert!(success && text == "1\n", "{text}");
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&fs::metadata(sockets).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o700);
    supervisor.stop_all().await;
}

/// What a copied production cluster would do if it were let.
const PRODUCTION: &str = "
archive_mode = on
archive_command = 'touch /tmp/coppice-archived'
wal_level = logical
data_directory = '/var/lib/postgresql/production'
hba_file = '/etc/postgresql/production/pg_hba.conf'
ident_file = '/etc/postgresql/production/pg_ident.conf'
external_pid_file = '/var/run/production.pid'
listen_addresses = '*'
port = 6543
unix_socket_directories = '/var/run/production'
unix_socket_group = 'no-such-group'
ssl = on
ssl_cert_file = '/etc/ssl/production.pem'
logging_collector = on
log_directory = '/var/log/production'
synchronous_standby_names = '*'
primary_conninfo = 'host=production'
primary_slot_name = 'branch'
restore_command = 'false'
recovery_target_time = '2020-01-01'
cron.database_name = 'app'
";

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_a_production_cluster_is_its_own_primary() {
    let lab = Lab::new();
    let password = lab.timeline(ONE).await;
    let config = lab.data(ONE).join("postgresql.conf");
    fs::File::options()
        .append(true)
        .open(&config)
        .unwrap()
        .write_all(PRODUCTION.as_bytes())
        .unwrap();
    let supervisor = lab.supervisor();
    let lease = supervisor.wake(ONE).await.unwrap();
    let client = connect(lease.socket(), &password).await;
    let slot = "SELECT pg_create_logical_replication_slot('production', 'pgoutput')";
    client.simple_query(slot).await.unwrap();
    let subscription = "CREATE SUBSCRIPTION production CONNECTION 'host=production' PUBLICATION p \
        WITH (connect = false)";
    client.batch_execute(subscription).await.unwrap();
    client.batch_execute("ALTER SUBSCRIPTION production ENABLE").await.unwrap();
    supervisor.suspend(ONE).await;
    drop(lease);
    let lease = supervisor.wake(ONE).await.unwrap();
    let client = connect(lease.socket(), &password).await;
    let slots = "SELECT count(*) FROM pg_replication_slots";
    assert_eq!(ask(&client, slots).await, "1", "a branch's own slot outlives a suspend");
    // Without the checkpoint that a clean stop makes: a crash image with stale files.
    copy(&lab.data(ONE), &lab.data(TWO));
    fs::write(lab.data(TWO).join("standby.signal"), "").unwrap();
    fs::write(lab.data(TWO).join("recovery.signal"), "").unwrap();

    let lease = supervisor.wake(TWO).await.unwrap();
    let client = connect(lease.socket(), &password).await;
    let expected = [
        ("SELECT pg_is_in_recovery()", "f"),
        (slots, "0"),
        ("SHOW archive_mode", "off"),
        ("SHOW cron.launch_active_jobs", "off"),
        ("SHOW synchronous_standby_names", ""),
        ("SHOW listen_addresses", ""),
        ("SHOW wal_level", "logical"),
        ("SHOW cluster_name", "coppice 00000002"),
        ("SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'logical%'", "0"),
        ("SELECT subenabled FROM pg_subscription", "t"),
        ("SELECT current_setting('data_directory') LIKE '%00000002'", "t"),
    ];
    for (query, answer) in expected {
        assert_eq!(ask(&client, query).await, answer, "{query}");
    }
    client.batch_execute("CREATE TABLE t (); SELECT pg_switch_wal()").await.unwrap();
    client.batch_execute("ALTER SYSTEM SET archive_mode = 'always'").await.unwrap();
    supervisor.suspend(TWO).await;
    let lease = supervisor.wake(TWO).await.unwrap();
    let client = connect(lease.socket(), &password).await;
    assert_eq!(ask(&client, "SHOW archive_mode").await, "off");
    assert!(!fs::exists("/tmp/coppice-archived").unwrap());
    supervisor.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_with_its_configuration_elsewhere_starts() {
    let lab = Lab::new();
    let password = lab.timeline(ONE).await;
    for name in ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"] {
        fs::remove_file(lab.data(ONE).join(name)).unwrap();
    }
    let supervisor = lab.supervisor();
    let lease = supervisor.wake(ONE).await.unwrap();
    let client = connect(lease.socket(), &password).await;
    client.batch_execute("ALTER SYSTEM SET max_connections = 17").await.unwrap();
    supervisor.suspend(ONE).await;
    let lease = supervisor.wake(ONE).await.unwrap();
    let client = connect(lease.socket(), &password).await;
    assert_eq!(ask(&client, "SHOW max_connections").await, "17");
    supervisor.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_another_postgres_uses_is_refused() {
    let lab = Lab::new();
    lab.timeline(ONE).await;
    let supervisor = lab.supervisor();
    let _lease = supervisor.wake(ONE).await.unwrap();
    let error = lab.supervisor().wake(ONE).await.unwrap_err();
    assert_eq!(error.code, "data_directory_in_use");
    assert!(lab.data(ONE).join("postmaster.pid").exists());
    supervisor.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bootstrap_leaves_a_cleanly_stopped_cluster() {
    let lab = Lab::new();
    let password = lab.timeline(ONE).await;
    assert_eq!(password.len(), 32);
    let data = lab.data(ONE);
    let (_, control) = lab.tool("pg_controldata", &["-D", data.to_str().unwrap()], &[]);
    assert!(control.contains("Database cluster state:               shut down\n"), "{control}");
    assert!(control.contains("Data page checksum version:           1\n"), "{control}");
    let left = fs::read_dir(lab.run_dir()).unwrap().flatten();
    assert_eq!(
        left.filter(|entry| entry.file_name().to_string_lossy().starts_with("password")).count(),
        0
    );
    let supervisor = lab.supervisor();
    let lease = supervisor.wake(ONE).await.unwrap();
    let client = connect(lease.socket(), &password).await;
    let encoding = "SELECT pg_encoding_to_char(encoding) || ' ' || datcollate FROM pg_database \
                    WHERE datname = 'app'";
    assert_eq!(ask(&client, encoding).await, "UTF8 C.UTF-8");
    supervisor.stop_all().await;
    let again = pageserver::compute::bootstrap::initialize(
        &lab.installation,
        &lab.user,
        &data,
        &lab.run_dir(),
    )
    .await;
    assert!(again.unwrap_err().detail.contains("exists but is not empty"));
}

/// Hosts a compute in a process that the tests below kill.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "the body of a victim process"]
async fn victim() {
    let Some(root) = std::env::var_os("COPPICE_TEST_VICTIM") else {
        return;
    };
    let lab = Lab::at(root.into());
    let supervisor = lab.supervisor();
    let _lease = supervisor.wake(ONE).await.unwrap();
    println!("\nready");
    tokio::time::sleep(Duration::from_secs(60)).await;
}

fn start_victim(lab: &Lab) -> std::process::Child {
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "--nocapture", "victim"])
        .env("COPPICE_TEST_VICTIM", &lab.root)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(victim.stdout.take().unwrap()).lines();
    assert!(lines.map_while(Result::ok).any(|line| line == "ready"), "the victim failed");
    victim
}

#[tokio::test(flavor = "multi_thread")]
async fn computes_die_with_a_killed_server() {
    let lab = Lab::new();
    let password = lab.timeline(ONE).await;
    let mut victim = start_victim(&lab);
    assert!(!lab.processes(ONE).is_empty());
    let killed = Instant::now();
    victim.kill().unwrap();
    victim.wait().unwrap();
    eventually("no process", SOON, || lab.processes(ONE).is_empty()).await;
    println!("dead {:?} after the server", killed.elapsed());
    assert_eq!(leftovers::clean(&lab.run_dir()).unwrap(), 1);
    let supervisor = lab.supervisor();
    let lease = supervisor.wake(ONE).await.unwrap();
    connect(lease.socket(), &password).await;
    supervisor.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leftovers_of_a_killed_server_are_ended() {
    let lab = Lab::new();
    let password = lab.timeline(ONE).await;
    let mut victim = start_victim(&lab);
    let socket = lab.run_dir().join("00000001/.s.PGSQL.5432");
    let client = connect(&socket, &password).await;
    let busy =
        tokio::spawn(
            async move { client.batch_execute("DO $$ BEGIN LOOP END LOOP; END $$").await },
        );
    tokio::time::sleep(Duration::from_millis(200)).await;
    let postmaster = lab.postmaster(ONE);
    let memory = shared_memory(&lab, postmaster);
    // Both at once, so that neither can clean up; the busy backend notices neither.
    let victim_pid = i32::try_from(victim.id()).unwrap();
    signal(victim_pid, Signal::SIGSTOP);
    signal(postmaster, Signal::SIGKILL);
    signal(victim_pid, Signal::SIGKILL);
    victim.wait().unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(lab.processes(ONE).len(), 1, "the busy one");
    let run_dir = lab.run_dir();
    let cleaned = tokio::task::spawn_blocking(move || leftovers::clean(&run_dir)).await.unwrap();
    assert_eq!(cleaned.unwrap(), 1);
    assert_eq!(lab.processes(ONE), Vec::<i32>::new());
    assert!(busy.await.unwrap().is_err());
    assert!(!lab.run_dir().join(ONE.to_string()).exists(), "sockets left");
    let supervisor = lab.supervisor();
    let lease = supervisor.wake(ONE).await.unwrap();
    connect(lease.socket(), &password).await;
    supervisor.stop_all().await;
    assert_eq!(left_of(&memory), Vec::<String>::new());
}
