//! The branch service and the API over it, in this process: what waits for whom, what is said of
//! each change, and who did it. No Postgres runs.

#![expect(clippy::unwrap_used, reason = "the lint knows test functions, but not their helpers")]

use api::client::Client;
use coppice::Directory;
use pageserver::api::{App, Metrics, Token, router, serve};
use pageserver::branches::{About, Branches, NewBranch, NewSettings};
use pageserver::compute::{ComputeConfig, Installation, OsUser, Supervisor};
use pageserver::events::{Action, Actor, Event};
use pageserver::fs::mount::{IoUring, Mount, Places};
use pageserver::fs::tree::Tree;
use pageserver::import::{CopyLogin, ImportTarget, Imports};
use pageserver::jobs::Jobs;
use pageserver::moment::Moment;
use pageserver::server::{open_disk, random_number};
use pageserver::storage::catalog::Login;
use pageserver::storage::catalog::Update;
use pageserver::storage::page::TimelineId;
use pageserver::storage::store::Store;
use std::os::unix::fs::MetadataExt;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::broadcast::error::TryRecvError;

/// Only a hang takes so long.
const LIMIT: Duration = Duration::from_secs(120);

/// A server without a proxy, in this process.
struct Service {
    runtime: tokio::runtime::Runtime,
    store: Arc<Store>,
    mount: Arc<Mount>,
    branches: Arc<Branches>,
    client: Client,
    token: String,
    address: std::net::SocketAddr,
    _directory: Directory,
}

impl Service {
    fn start() -> Self {
        let directory = Directory::new();
        let data = directory.path().join("data");
        std::fs::create_dir_all(&data).unwrap();
        let disk = open_disk(&data).unwrap();
        let store = Arc::new(Store::open(disk, random_number().unwrap()).unwrap());
        store.keep_history(Duration::from_secs(60)).unwrap();
        let made = std::fs::metadata(&data).unwrap();
        let owner = (made.uid(), made.gid());
        let [at, wal, scratch, run] =
            ["mount", "mount-wal", "scratch", "run"].map(|name| data.join(name));
        std::fs::create_dir_all(&run).unwrap();
        let places = Places { data: &at, wal: &wal, scratch: &scratch };
        let mount = Mount::new(Arc::clone(&store), places, owner, None, IoUring::Off);
        let mount = Arc::new(mount.unwrap());
        let (installation, user) =
            (Installation::find(None).unwrap(), OsUser::resolve(None).unwrap());
        let config = ComputeConfig::new(installation.clone(), user.clone(), run.clone());
        let supervisor = Supervisor::new(config, Arc::clone(&mount) as _).unwrap();
        let about = About {
            postgres_version: "0".into(),
            proxy_address: "localhost:1".into(),
            domain: None,
            ca_file: None,
        };
        let branches =
            Branches::new(Arc::clone(&store), Arc::clone(&mount), supervisor, about, 3_600);
        let imports = Imports::new(installation, user, &run, Arc::clone(&branches) as _, 1 << 30);
        let imports = imports.unwrap();
        let token = Token::load_or_create(&data.join("api-token")).unwrap();
        let secret = token.secret().to_owned();
        let app = App {
            branches: Arc::clone(&branches),
            imports,
            jobs: Jobs::new(Instant::now()),
            metrics: Arc::new(Metrics::new()),
            proxy: Arc::default(),
        };
        // Two threads, as on a small machine.
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(2).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let router = router(Arc::new(app), token);
        runtime.spawn(serve(listener, router, std::future::pending()));
        let client = Client::new(&format!("http://{address}"), Some(secret.clone())).unwrap();
        let (token, _directory) = (secret, directory);
        let service = Self { runtime, store, mount, branches, client, token, address, _directory };
        let root = service.root();
        let first = service.branches.create_first("main", root, "first".to_owned().into());
        service.runtime.block_on(first).unwrap();
        service
    }

    /// A new root timeline with an empty directory.
    fn root(&self) -> TimelineId {
        let timeline = self.store.create_root().unwrap();
        let tree = Tree::new(self.store.timeline(timeline).unwrap());
        tree.make_root((1, 1), 0).unwrap();
        timeline
    }

    fn timeline(&self, branch: &str) -> TimelineId {
        TimelineId(self.store.catalog().branch(branch).unwrap().timeline)
    }

    fn create(&self, name: &str, parent: &str) {
        let parent = Some(parent.to_owned());
        let new = NewBranch { name: name.to_owned(), parent, ..NewBranch::default() };
        self.runtime.block_on(self.branches.create(Actor::Token, new)).unwrap();
    }

    /// Keeps a timeline busy, as one is that recovers or is forked, until told to let go.
    fn keep_busy(&self, timeline: TimelineId) -> Busy {
        let (store, (taken, is_taken)) = (Arc::clone(&self.store), channel());
        let (release, released) = channel::<()>();
        let released: Mutex<Receiver<()>> = Mutex::new(released);
        let thread = std::thread::spawn(move || {
            let forked = store.fork(timeline, |_| {
                taken.send(()).unwrap();
                let _gone = released.lock().unwrap().recv();
                // What cannot be published leaves nothing behind.
                let mut update = Update::default();
                update.flatten.push((TimelineId(u64::MAX), Default::default()));
                update
            });
            assert_eq!(forked.unwrap_err().code, "timeline_not_found");
        });
        is_taken.recv_timeout(LIMIT).unwrap();
        Busy { release: Some(release), thread: Some(thread) }
    }

    /// The answer of a route.
    fn get(&self, path: &str) -> String {
        // No job of the server looks at the disk here.
        self.store.measure().unwrap();
        let request = ureq::get(format!("http://{}{path}", self.address))
            .header("authorization", format!("Bearer {}", self.token));
        request.call().unwrap().body_mut().read_to_string().unwrap()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.mount.unmount();
    }
}

struct Busy {
    release: Option<Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Drop for Busy {
    fn drop(&mut self) {
        drop(self.release.take());
        let _ = self.thread.take().map(std::thread::JoinHandle::join);
    }
}

/// Runs `work` on a thread of its own; it has to end while something else is held.
fn in_time<T: Send>(what: &str, work: impl FnOnce() -> T + Send) -> T {
    let (done, outcome) = channel();
    std::thread::scope(|scope| {
        let began = Instant::now();
        scope.spawn(move || done.send(work()));
        let outcome = outcome.recv_timeout(LIMIT);
        println!("{what}: {:.1} ms", began.elapsed().as_secs_f64() * 1e3);
        outcome.unwrap_or_else(|_| {
            // The thread that waits would keep the scope open for ever.
            eprintln!("{what} waits for the timeline that is busy");
            std::process::abort()
        })
    })
}

#[test]
fn the_api_answers_while_a_timeline_is_busy() {
    let service = Service::start();
    service.create("child", "main");
    let busy = service.keep_busy(service.timeline("main"));
    for _ in 0..3 {
        assert!(in_time("healthz", || service.get("/healthz")).contains("ok"));
        let listed = in_time("list", || service.client.list().unwrap());
        assert_eq!(listed.len(), 2);
        assert_eq!(in_time("show", || service.client.get("main").unwrap()).name, "main");
        assert_eq!(in_time("status", || service.client.status().unwrap()).branches, 2);
        let usage = in_time("usage", || service.client.usage().unwrap());
        assert_eq!(usage.branches.len(), 2);
    }
    let name = "of-child".to_owned();
    let new =
        api::types::CreateBranch { name, parent: Some("child".to_owned()), ..Default::default() };
    assert_eq!(in_time("create", || service.client.create(&new).unwrap()).name, "of-child");
    drop(busy);
}

#[test]
fn the_end_of_an_import_keeps_no_change_waiting() {
    let service = Service::start();
    let (timeline, _) = service.branches.begin("copy").unwrap();
    let busy = service.keep_busy(timeline);
    let (branches, (ended, end)) = (Arc::clone(&service.branches), channel());
    let runtime = service.runtime.handle().clone();
    std::thread::spawn(move || {
        let _within = runtime.enter();
        let access = CopyLogin { login: Login::default(), password: "x".to_owned().into() };
        ended.send(branches.publish(&Actor::Token, "copy", timeline, access)).unwrap();
    });
    in_time("create", || service.create("meanwhile", "main"));
    let taken = in_time("refusal", || {
        service
            .client
            .create(&api::types::CreateBranch { name: "copy".to_owned(), ..Default::default() })
    });
    assert!(taken.unwrap_err().to_string().contains("is being imported"));
    assert!(end.try_recv().is_err(), "the import waits for its timeline");
    drop(busy);
    end.recv_timeout(LIMIT).unwrap().unwrap();
    assert_eq!(service.client.get("copy").unwrap().parent, None);
}

#[test]
fn a_moment_that_takes_long_to_find_keeps_no_other_visit_waiting() {
    let service = Service::start();
    service.create("other", "main");
    let busy = service.keep_busy(service.timeline("main"));
    let visit = |branch: &'static str| {
        let branches = Arc::clone(&service.branches);
        service.runtime.spawn(async move {
            branches.visit(branch, &Moment::Position(1)).await.map(drop).map_err(|e| e.code)
        })
    };
    let slow = visit("main");
    // Its timeline comes from the busy one: to look at it is to wait as well, but for its own.
    let other = service.root();
    let put = |id| {
        let record = service.store.catalog().branch("main").unwrap();
        let record = pageserver::storage::catalog::BranchRecord { id, timeline: other.0, ..record };
        Update::default().put("apart", record)
    };
    service.store.publish(put(service.store.catalog().new_branch())).unwrap();
    let quick = visit("apart");
    let refused = in_time("visit", || service.runtime.block_on(quick).unwrap());
    assert_eq!(refused, Err("moment_outside_history"));
    assert!(!slow.is_finished(), "the other one is still looked for");
    drop(busy);
    assert_eq!(service.runtime.block_on(slow).unwrap(), Err("moment_outside_history"));
}

#[test]
fn each_change_is_one_event_that_says_who_did_what_and_a_refusal_is_none() {
    let service = Service::start();
    let mut events = service.branches.events().subscribe();
    let (branches, runtime) = (&service.branches, &service.runtime);
    let job = || Actor::Job("sweep");
    service.create("a", "main");
    let protect = |protected| NewSettings { protected: Some(protected), ..NewSettings::default() };
    runtime.block_on(branches.update(Actor::Token, "a", protect(true))).unwrap();
    let refused = runtime.block_on(branches.reset(job(), "a", None)).unwrap_err();
    assert_eq!(refused.code, "branch_protected");
    assert_eq!(runtime.block_on(branches.delete(job(), "a")).unwrap_err().code, "branch_protected");
    assert_eq!(runtime.block_on(branches.delete(job(), "x")).unwrap_err().code, "branch_not_found");
    runtime.block_on(branches.update(Actor::Token, "a", protect(false))).unwrap();
    runtime.block_on(branches.reset(job(), "a", None)).unwrap();
    let rename = NewSettings { name: Some("b".to_owned()), ..NewSettings::default() };
    runtime.block_on(branches.update(Actor::Token, "a", rename)).unwrap();
    runtime.block_on(branches.delete(job(), "b")).unwrap();
    let expected = [
        (Actor::Token, Action::Create, "a", Some("main")),
        (Actor::Token, Action::Update, "a", None),
        (Actor::Token, Action::Update, "a", None),
        (job(), Action::Reset, "a", Some("main")),
        (Actor::Token, Action::Update, "a", Some("b")),
        (job(), Action::Delete, "b", None),
    ];
    let mut numbers = Vec::new();
    for (actor, action, name, other_name) in expected {
        let found: Arc<Event> = events.try_recv().unwrap();
        let other = found.other_name.as_deref();
        assert_eq!(
            (&found.actor, found.action, found.name.as_str(), other),
            (&actor, action, name, other_name)
        );
        numbers.push(found.branch);
    }
    assert!(numbers.iter().all(|number| *number == numbers[0]), "{numbers:?}");
    assert_eq!(events.try_recv().unwrap_err(), TryRecvError::Empty);
    let metrics = service.get("/metrics");
    for line in [
        r#"coppice_branch_events_total{action="create"} 2"#,
        r#"coppice_branch_events_total{action="update"} 3"#,
        r#"coppice_branch_events_total{action="delete"} 1"#,
    ] {
        assert!(metrics.lines().any(|known| known == line), "{line} is not in\n{metrics}");
    }
}

#[test]
fn a_long_list_comes_in_pages_and_by_prefix() {
    let service = Service::start();
    for nth in 0..25 {
        service.create(&format!("{}/{nth:02}", if nth % 2 == 0 { "even" } else { "odd" }), "main");
    }
    let page = |query: &str| -> api::types::BranchList {
        serde_json::from_str(&service.get(&format!("/v1/branches{query}"))).unwrap()
    };
    let names = |page: &api::types::BranchList| -> Vec<String> {
        page.branches.iter().map(|branch| branch.name.clone()).collect()
    };
    let first = page("?prefix=odd/&limit=5");
    assert_eq!(names(&first), ["odd/01", "odd/03", "odd/05", "odd/07", "odd/09"]);
    let next = first.next.unwrap().replace('/', "%2F");
    let second = page(&format!("?prefix=odd/&limit=7&cursor={next}"));
    assert_eq!((second.branches.len(), &second.next), (7, &None));
    assert_eq!(names(&second).last().map(String::as_str), Some("odd/23"));
    assert_eq!(page("").branches.len(), 26);
    assert_eq!(service.client.list_prefix("even/").unwrap().len(), 13);
}

#[test]
fn a_moment_that_is_none_is_refused_only_when_it_is_looked_for() {
    let service = Service::start();
    let at = Some(api::types::Moment::Lsn("no/lsn".to_owned()));
    let body = |name: &str| api::types::CreateBranch {
        name: name.to_owned(),
        at: at.clone(),
        ..Default::default()
    };
    let (found, new) = service.client.ensure("main", &body("main")).unwrap();
    assert_eq!((found.name.as_str(), new), ("main", false), "it is there already");
    let code = |outcome: Result<_, api::client::Error>| outcome.map(drop).unwrap_err().code;
    assert_eq!(code(service.client.create(&body("main"))), "branch_exists");
    assert_eq!(code(service.client.create(&body("new"))), "invalid_moment");
    assert_eq!(code(service.client.create(&body("-new"))), "bad_branch_name");
}
