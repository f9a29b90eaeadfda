//! A branch of a Coppice server, its store on the same file system as the native Postgres.

use crate::systems::{Base, System, load};
use api::client::Client;
use api::types::CreateBranch;
use coppice::processes::wait_until_at_rest;
use coppice::sides::{DATABASE, Side, set_up_branch};
use coppice::{Directory, LIMIT, Server, eventually};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The branch under load.
const WORK: &str = "work";
const NAME: &str = "coppice";
/// A branch of a Coppice server.
pub(crate) struct Coppice {
    server: Server,
    client: Client,
}

impl Coppice {
    /// Makes a server with a base that is sealed, as what has rested for half a minute is. Then the
    /// server is started anew with its default limits, served over io_uring. Nothing is suspended
    /// by itself, since a suspended side would be measured waking up.
    pub(crate) fn new(directory: &Arc<Directory>, base: Base) -> Self {
        let directory = Arc::clone(directory);
        let at_once = ["--suspend-after", "0", "--io-uring", "on", "--seal-after", "1"];
        let mut server = Server::start_with(Arc::clone(&directory), &at_once);
        set_up_branch(&server, "main");
        load(&Side::branch(NAME, &server, "main"), base);
        server.client().suspend("main").expect("suspend");
        wait_until_sealed(&server);
        assert!(server.stop().success(), "the server stopped with an error");
        let flags = if base.seal_at_once { &at_once[..] } else { &at_once[..4] };
        let server = Server::start_with(directory, flags);
        let client = server.client();
        let made = Self { server, client };
        made.create_branch(WORK);
        made.client.wake(WORK).expect("wake");
        made
    }

    fn create_branch(&self, name: &str) {
        let request = CreateBranch { name: name.to_owned(), ..CreateBranch::default() };
        self.client.create(&request).expect("create a branch");
    }

    /// The way to a branch that need not exist yet: it will have the password of its parent.
    fn way_to(&self, branch: &str) -> Side {
        let main = Side::proxied(NAME, &self.server, "main");
        main.with_database(&format!("{DATABASE}@{branch}"))
    }
}

impl System for Coppice {
    fn name(&self) -> &'static str {
        NAME
    }

    fn side(&self) -> Side {
        Side::branch(NAME, &self.server, WORK)
    }

    fn restart(&mut self, between: &mut dyn FnMut()) {
        self.client.suspend(WORK).expect("suspend");
        self.settle();
        between();
        self.client.wake(WORK).expect("wake");
    }

    fn settle(&mut self) {
        wait_until_at_rest(&self.server);
    }

    fn create(&mut self, branch: &str) -> f64 {
        self.create_branch(branch);
        request_ms(&self.server, branch)
    }

    fn remove(&mut self, branch: &str) {
        self.client.delete(branch).expect("delete a branch");
    }

    fn first_row(&mut self, branch: &str) -> f64 {
        let side = self.way_to(branch);
        let began = Instant::now();
        self.create_branch(branch);
        side.sql("select 1");
        let ms = began.elapsed().as_secs_f64() * 1e3;
        self.client.suspend(branch).expect("suspend");
        ms
    }

    fn wake(&mut self, branch: &str) -> f64 {
        let side = self.way_to(branch);
        let began = Instant::now();
        side.sql("select 1");
        let ms = began.elapsed().as_secs_f64() * 1e3;
        self.client.suspend(branch).expect("suspend");
        ms
    }

    fn visit(&mut self, branch: &str, work: &mut dyn FnMut(&Side)) {
        work(&Side::branch(NAME, &self.server, branch));
        self.client.suspend(branch).expect("suspend");
    }

    fn proxied(&self) -> Option<[Side; 2]> {
        Some([
            Side::proxied_locally("proxy", &self.server, WORK),
            Side::proxied("proxy", &self.server, WORK),
        ])
    }

    /// All but the spare files, which are kept ready for whoever writes next. They correspond to
    /// what other file systems have set aside and count as free.
    fn used_bytes(&mut self) -> u64 {
        self.client.suspend(WORK).expect("suspend");
        wait_until_sealed(&self.server);
        self.settle();
        let store = self.server.data().join("store");
        [store.clone(), store.join("lanes"), store.join("layers")]
            .iter()
            .map(|path| file_bytes(path))
            .sum()
    }
}

/// Waits until no lane has a log any more. What nobody has opened since a start is opened and
/// sealed in its time.
fn wait_until_sealed(server: &Server) {
    let lanes = server.data().join("store/lanes");
    eventually("everything is sealed", || {
        let files = std::fs::read_dir(&lanes).expect("list the lanes").flatten();
        files.filter(|file| !file.file_name().to_string_lossy().starts_with("spare")).count() == 0
    });
}

fn file_bytes(directory: &Path) -> u64 {
    let files = std::fs::read_dir(directory).expect("list a directory of the store").flatten();
    let files = files.filter(|file| !file.file_name().to_string_lossy().starts_with("spare"));
    let lengths = files.filter_map(|file| file.metadata().ok()).filter(std::fs::Metadata::is_file);
    lengths.map(|metadata| metadata.blocks() * 512).sum()
}

/// How long the server took to answer the request that created a branch, by its log.
fn request_ms(server: &Server, branch: &str) -> f64 {
    let began = Instant::now();
    loop {
        let log = server.log();
        let line = log.lines().rev().find(|line| {
            line.contains("method=POST route=\"/v1/branches\"")
                && line.contains(&format!("\"{branch}\""))
        });
        let ms = line.and_then(|line| line.split(" ms=").nth(1)?.split(' ').next()?.parse().ok());
        if let Some(ms) = ms {
            return ms;
        }
        assert!(
            began.elapsed() < LIMIT,
            "the log does not tell of the creation of {branch}:\n{log}"
        );
        std::thread::sleep(Duration::from_millis(1));
    }
}
