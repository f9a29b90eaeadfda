//! Imports from a live Postgres, under load, with a tablespace; and every way in which they must
//! leave nothing.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod lab;

use lab::{Lab, ask, connect, eventually, signal};
use nix::sys::signal::Signal;
use pageserver::compute::{Lease, Supervisor};
use pageserver::error::{Error, Result};
use pageserver::events::Actor;
use pageserver::import::{CopyLogin, Import, ImportState, ImportTarget, Imports, NewImport};
use pageserver::storage::catalog::Login;
use pageserver::storage::page::TimelineId;
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

const SOURCE: TimelineId = TimelineId(1);
const COPY: TimelineId = TimelineId(2);
/// More than the settings of a new cluster ask for.
const MEMORY_BYTES: u64 = 4 << 30;
/// Only a hang takes longer.
const SOON: Duration = Duration::from_secs(120);

/// Puts every import into timeline [`COPY`] on an ordinary file system.
struct Target {
    lab: Lab,
    calls: Mutex<Vec<&'static str>>,
}

impl Target {
    fn called(&self, what: &'static str) {
        self.calls.lock().unwrap().push(what);
    }

    fn calls(&self) -> Vec<&'static str> {
        self.calls.lock().unwrap().clone()
    }
}

impl ImportTarget for Target {
    fn begin(&self, name: &str) -> Result<(TimelineId, PathBuf)> {
        self.called("begin");
        if name == "taken" {
            return Err(Error::conflict("branch_exists", "branch taken exists"));
        }
        self.lab.owned_directory(&self.lab.data(COPY));
        Ok((COPY, self.lab.data(COPY)))
    }

    fn try_out(&self, timeline: TimelineId, login: Login) -> Result<CopyLogin> {
        self.called("try");
        assert_eq!(timeline, COPY);
        Ok(CopyLogin { login, password: "new".to_owned().into() })
    }

    fn publish(
        &self,
        _: &Actor,
        name: &str,
        timeline: TimelineId,
        access: CopyLogin,
    ) -> Result<()> {
        self.called("publish");
        assert_eq!((name, timeline), ("copy", COPY));
        assert_eq!((&*access.login.role, &*access.login.database), ("postgres", "app"));
        Ok(())
    }

    fn abort(&self, _: &str, timeline: TimelineId) {
        self.called("abort");
        fs::remove_dir_all(self.lab.data(timeline)).unwrap();
    }
}

/// A running source and a place for imports.
struct Scene {
    target: Arc<Target>,
    supervisor: Arc<Supervisor>,
    password: String,
    source: Lease,
}

impl Scene {
    async fn new() -> Self {
        let lab = Lab::new();
        let password = lab.timeline(SOURCE).await;
        let supervisor = lab.supervisor();
        let source = supervisor.wake(SOURCE).await.unwrap();
        let calls = Mutex::default();
        Self { target: Arc::new(Target { lab, calls }), supervisor, password, source }
    }

    fn imports(&self) -> Arc<Imports> {
        let lab = &self.target.lab;
        Imports::new(
            lab.installation.clone(),
            lab.user.clone(),
            &lab.run_dir(),
            self.target.clone(),
            MEMORY_BYTES,
        )
        .unwrap()
    }

    fn sockets(&self) -> &str {
        self.source.socket().parent().unwrap().to_str().unwrap()
    }

    fn url(&self) -> String {
        format!("postgresql://postgres:{}@/app?host={}", self.password, self.sockets())
    }

    fn request(&self) -> NewImport {
        NewImport { name: "copy".to_owned(), source: self.url().into() }
    }

    fn pgbench(&self, arguments: &[&str]) {
        let all = [&["-h", self.sockets(), "-U", "postgres"], arguments, &["app"]].concat();
        let (success, text) =
            self.target.lab.tool("pgbench", &all, &[("PGPASSWORD", &self.password)]);
        assert!(success, "{text}");
    }

    /// Numbers of the running copies: `pg_basebackup` and its second process.
    fn copies(&self) -> Vec<i32> {
        let wanted = self.target.lab.data(COPY).to_str().unwrap().to_owned();
        let entries = fs::read_dir("/proc").unwrap().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let runs = |pid: &i32| {
            let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.contains("pg_basebackup") && line.contains(&wanted)
        };
        pids.filter(runs).collect()
    }

    /// A source big enough that a copy can be caught in the middle: it is slowed down by its own
    /// disk and ours.
    async fn grow(&self) {
        let client = connect(self.source.socket(), &self.password).await;
        let table = "CREATE TABLE big AS SELECT repeat(md5(n::text), 30) AS text FROM \
                     generate_series(1, 400000) n";
        client.batch_execute(table).await.unwrap();
    }

    async fn end(self) {
        assert_eq!(self.copies(), Vec::<i32>::new());
        self.supervisor.stop_all().await;
        assert_eq!(self.target.lab.processes(SOURCE), Vec::<i32>::new());
    }
}

async fn finished(imports: &Imports, id: &str) -> Import {
    eventually("the import ends", SOON, || imports.get(id).unwrap().state != ImportState::Running)
        .await;
    imports.get(id).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_under_load_with_a_tablespace_is_copied() {
    let scene = Scene::new().await;
    let lab = &scene.target.lab;
    let outside = lab.root.join("table=space");
    lab.owned_directory(&outside);
    let client = connect(scene.source.socket(), &scene.password).await;
    client
        .batch_execute(&format!("CREATE TABLESPACE extra LOCATION '{}'", outside.display()))
        .await
        .unwrap();
    client.batch_execute("CREATE TABLE far (n int) TABLESPACE extra").await.unwrap();
    client.batch_execute("INSERT INTO far SELECT generate_series(1, 1000)").await.unwrap();
    scene.pgbench(&["-i", "-q", "-s", "2"]);
    let imports = scene.imports();
    let import = tokio::task::block_in_place(|| {
        std::thread::scope(|threads| {
            threads.spawn(|| scene.pgbench(&["-c", "2", "-T", "4"]));
            std::thread::sleep(Duration::from_millis(500));
            tokio::runtime::Handle::current().block_on(async {
                let import = imports.start(Actor::Token, scene.request()).await.unwrap();
                assert_eq!(import.state, ImportState::Running);
                finished(&imports, &import.id).await
            })
        })
    });
    assert_eq!(import.state, ImportState::Done, "{:?}", import.error);
    assert!(
        import.bytes_done > 30_000_000 && import.bytes_total >= Some(import.bytes_done),
        "{import:?}"
    );
    assert_eq!(scene.target.calls(), ["begin", "try", "publish"]);

    // The link of the copy points into it; on the mount it becomes a relative one.
    let link =
        fs::read_dir(lab.data(COPY).join("pg_tblspc")).unwrap().next().unwrap().unwrap().path();
    assert!(fs::read_link(&link).unwrap().starts_with(lab.data(COPY).join("tablespaces")));
    let lease = scene.supervisor.wake(COPY).await.unwrap();
    let copy = connect(lease.socket(), &scene.password).await;
    assert_eq!(ask(&copy, "SELECT count(*) FROM far").await, "1000");
    copy.batch_execute("DELETE FROM far").await.unwrap();
    assert_eq!(ask(&client, "SELECT count(*) FROM far").await, "1000");
    let sums = "SELECT (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT coalesce(sum(delta), \
                0) FROM pgbench_history) AND (SELECT sum(tbalance) FROM pgbench_tellers) = (SELECT \
                sum(bbalance) FROM pgbench_branches)";
    assert_eq!(ask(&copy, sums).await, "t");
    assert_ne!(
        ask(&copy, "SELECT count(*) FROM pgbench_history").await,
        "0",
        "it was copied under load"
    );
    drop((copy, client));
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_without_configuration_files_keeps_its_settings() {
    let scene = Scene::new().await;
    let lab = &scene.target.lab;
    scene.supervisor.suspend(SOURCE).await;
    fs::remove_file(lab.data(SOURCE).join("postgresql.conf")).unwrap();
    let auto = lab.data(SOURCE).join("postgresql.auto.conf");
    fs::write(&auto, "max_prepared_transactions = 7\nshared_preload_libraries = 'auto_explain'\n")
        .unwrap();
    let _lease = scene.supervisor.wake(SOURCE).await.unwrap();
    let imports = scene.imports();
    let import = imports.start(Actor::Token, scene.request()).await.unwrap();
    let import = finished(&imports, &import.id).await;
    assert_eq!(import.state, ImportState::Done, "{:?}", import.error);
    let config = fs::read_to_string(lab.data(COPY).join("postgresql.conf")).unwrap();
    assert!(config.contains("max_prepared_transactions = '7'\n"), "{config}");
    assert!(config.contains("shared_preload_libraries = 'auto_explain'\n"), "{config}");
    drop(scene.supervisor.wake(COPY).await.unwrap());
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sources_that_cannot_be_copied_are_refused_at_once() {
    let scene = Scene::new().await;
    let client = connect(scene.source.socket(), &scene.password).await;
    client.batch_execute("CREATE ROLE reader LOGIN PASSWORD 'reader'").await.unwrap();
    let imports = scene.imports();
    let refused = async |source: String| {
        let error = imports
            .start(Actor::Token, NewImport { source: source.into(), ..scene.request() })
            .await
            .unwrap_err();
        assert!(!error.detail.contains("wr0ng"), "{error}");
        (error.code, error.detail)
    };
    let sockets = scene.sockets();
    let (code, detail) = refused(format!("postgresql://postgres:wr0ng@/app?host={sockets}")).await;
    assert_eq!(code, "import_unreachable");
    assert!(detail.contains("password authentication failed"), "{detail}");
    let (code, detail) = refused("postgresql://postgres:wr0ng@127.0.0.1:1/app".to_owned()).await;
    assert_eq!(code, "import_unreachable");
    assert!(detail.contains("Connection refused"), "{detail}");
    let (code, detail) = refused(format!("postgresql://reader:reader@/app?host={sockets}")).await;
    assert_eq!(code, "import_role");
    assert!(detail.contains("ALTER ROLE \"reader\" REPLICATION"), "{detail}");
    assert_eq!(refused("host=x".to_owned()).await.0, "invalid_source");

    let lab = &scene.target.lab;
    let mut other = lab.installation.clone();
    other.major += 1;
    other.version = format!("{}.0", other.major);
    let imports_of_other = Imports::new(
        other.clone(),
        lab.user.clone(),
        &lab.run_dir(),
        scene.target.clone(),
        MEMORY_BYTES,
    )
    .unwrap();
    let error = imports_of_other.start(Actor::Token, scene.request()).await.unwrap_err();
    assert_eq!(error.code, "import_version");
    assert!(
        error.detail.contains(&other.version) && error.detail.contains(&lab.installation.version),
        "{error}"
    );
    assert_eq!(scene.target.calls(), Vec::<&str>::new());

    let taken = NewImport { name: "taken".to_owned(), ..scene.request() };
    assert_eq!(imports.start(Actor::Token, taken).await.unwrap_err().code, "branch_exists");
    assert!(imports.get("unknown").is_none());
    drop(client);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_killed_in_the_middle_leaves_nothing() {
    let scene = Scene::new().await;
    scene.grow().await;
    let imports = scene.imports();
    let import = imports.start(Actor::Token, scene.request()).await.unwrap();
    let copied = || fs::exists(scene.target.lab.data(COPY).join("base")).unwrap();
    eventually("files arrive", SOON, copied).await;
    signal(scene.copies()[0], Signal::SIGKILL);
    let import = finished(&imports, &import.id).await;
    assert_eq!(import.state, ImportState::Failed);
    let error = import.error.unwrap();
    assert!(error.contains("signal: 9") && !error.contains(&scene.password), "{error}");
    assert_eq!(scene.target.calls(), ["begin", "abort"]);
    assert!(!scene.target.lab.data(COPY).exists());

    let again = imports.start(Actor::Token, scene.request()).await.unwrap();
    assert_eq!(finished(&imports, &again.id).await.state, ImportState::Done);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_dies_in_the_middle_fails_the_import() {
    let scene = Scene::new().await;
    scene.grow().await;
    let imports = scene.imports();
    let import = imports.start(Actor::Token, scene.request()).await.unwrap();
    let copied = || fs::exists(scene.target.lab.data(COPY).join("base")).unwrap();
    eventually("files arrive", SOON, copied).await;
    signal(scene.target.lab.postmaster(SOURCE), Signal::SIGQUIT);
    let import = finished(&imports, &import.id).await;
    assert_eq!(import.state, ImportState::Failed);
    let error = import.error.unwrap();
    assert!(error.contains("pg_basebackup: error"), "{error}");
    assert!(!scene.target.lab.data(COPY).exists());
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_ends_imports_and_their_number_is_bounded() {
    let scene = Scene::new().await;
    scene.grow().await;
    let imports = scene.imports();
    let import = imports.start(Actor::Token, scene.request()).await.unwrap();
    eventually("a copy", SOON, || !scene.copies().is_empty()).await;
    // A second one is checked while a third is refused.
    let (second, third) = tokio::join!(
        imports.start(Actor::Token, NewImport { name: "taken".to_owned(), ..scene.request() }),
        imports.start(Actor::Token, scene.request()),
    );
    assert_eq!(second.unwrap_err().code, "branch_exists");
    assert_eq!(third.unwrap_err().code, "imports_busy");
    imports.stop_all().await;
    let import = imports.get(&import.id).unwrap();
    assert_eq!(import.state, ImportState::Failed);
    assert!(import.error.unwrap().contains("shutting down"));
    assert!(!scene.target.lab.data(COPY).exists());
    assert_eq!(
        imports.start(Actor::Token, scene.request()).await.unwrap_err().code,
        "shutting_down"
    );
    scene.end().await;
}
