//! What queries spill to temporary files is in no log and no branch, and is there as long as they
//! need it.

#![expect(clippy::unwrap_used, reason = "the lint knows test functions, but not their helpers")]

use api::types::CreateBranch;
use coppice::Server;
use coppice::sides::Side;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use std::fs::File;
use std::path::{Path, PathBuf};

const ROWS: u32 = 600_000;

/// Bytes of the files in which data lanes and their layers are.
fn data_bytes(server: &Server) -> u64 {
    let files = |directory| std::fs::read_dir(server.data().join("store").join(directory)).unwrap();
    let of_data = |name: &str| name.contains(".d.");
    ["lanes", "layers"]
        .into_iter()
        .flat_map(files)
        .filter_map(|entry| {
            entry.ok().filter(|entry| of_data(&entry.file_name().to_string_lossy()))
        })
        .map(|entry| entry.metadata().map_or(0, |metadata| metadata.len()))
        .sum()
}

/// Has the kernel hand over what it has of the mount.
fn flush(server: &Server) {
    nix::unistd::syncfs(File::open(server.data().join("mount")).unwrap()).unwrap();
}

fn inside(path: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(path).into_iter().flatten().map(|entry| entry.unwrap().path()).collect()
}

/// The data directories that the mount shows.
fn timelines(server: &Server) -> Vec<PathBuf> {
    inside(&server.data().join("mount"))
}

/// The temporary files that the mount shows.
fn temporary(server: &Server) -> Vec<PathBuf> {
    timelines(server).iter().flat_map(|timeline| inside(&timeline.join("base/pgsql_tmp"))).collect()
}

/// Has the kernel forget what it knows of the files' contents.
fn drop_cache(paths: &[PathBuf]) {
    for path in paths {
        posix_fadvise(File::open(path).unwrap(), 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)
            .unwrap();
    }
}

/// How many files without a name the server has open for contents: one for each Postgres's lock
/// file, the others for what was spilled.
fn held(server: &Server) -> usize {
    let place = server.data().join("scratch");
    let opened = std::fs::read_dir(format!("/proc/{}/fd", server.pid())).unwrap();
    let targets = opened.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    targets.filter(|target| target.starts_with(&place)).count()
}

#[test]
fn what_queries_spill_stays_out_of_the_store() {
    let mut server = Server::start();
    let table =
        format!("create table t as select i, md5(i::text) h from generate_series(1, {ROWS}) i");
    server.sql("main", &table).unwrap();
    // What a first reading of rows changes is written now.
    server.sql("main", "vacuum t").unwrap();
    server.sql("main", "checkpoint").unwrap();
    flush(&server);
    let before = data_bytes(&server);

    let main = Side::branch("main", &server, "main");
    let at =
        |nth: u32| main.sql(&format!("select h from t order by h offset {nth} limit 1")).unwrap();
    let session = main.connect();
    session.sql("set work_mem = '1MB'");
    session.sql("begin");
    session.sql("declare c no scroll cursor for select h from t order by h");
    assert_eq!(session.sql("fetch 1 from c").unwrap(), at(0));
    let spilled: u64 =
        session.sql("select sum(size) from pg_ls_tmpdir()").unwrap().parse().unwrap();
    assert!(spilled > 20 << 20, "{spilled} bytes were spilled");
    flush(&server);
    let grown = data_bytes(&server).saturating_sub(before);
    assert!(grown < spilled / 8, "of {spilled} bytes {grown} went to the store");
    assert!(held(&server) > 1);

    // Once a minute Postgres looks whether its lock file is still its own, and ends if it is not.
    let lock_file = timelines(&server)[0].join("postmaster.pid");
    let says = std::fs::read_to_string(&lock_file).unwrap();
    drop_cache(std::slice::from_ref(&lock_file));
    assert_eq!(std::fs::read_to_string(&lock_file).unwrap(), says);
    assert!(says.lines().next().is_some_and(|line| line.parse::<u32>().is_ok()), "{says:?}");
    drop_cache(&temporary(&server));
    for nth in [ROWS / 3, ROWS - 1] {
        session.sql(&format!("move absolute {nth} in c"));
        assert_eq!(
            session.sql("fetch 1 from c").unwrap(),
            at(nth),
            "row {nth} of what was spilled"
        );
    }

    let request = CreateBranch { name: "child".into(), ..Default::default() };
    server.client().create(&request).unwrap();
    let state = "select count(*) || ' ' || (select count(*) from pg_ls_tmpdir()) from t";
    assert_eq!(server.sql("child", state).unwrap(), format!("{ROWS} 0"));

    server.kill();
    server.restart();
    assert_eq!(server.sql("main", state).unwrap(), format!("{ROWS} 0"));
    assert_eq!((held(&server), temporary(&server).len()), (1, 0));
    assert_eq!(std::fs::read_dir(server.data().join("scratch")).unwrap().count(), 0);
}

#[test]
fn an_index_built_by_several_processes_is_whole_and_files_are_let_go() {
    let server = Server::start();
    let main = Side::branch("main", &server, "main");
    main.sql(&format!(
        "create table t as select i, md5(i::text) h from generate_series(1, {ROWS}) i"
    ));
    main.sql("create extension amcheck");
    let session = main.connect();
    session.sql("alter table t set (parallel_workers = 2)");
    std::thread::scope(|scope| {
        let build =
            scope.spawn(|| main.sql("set maintenance_work_mem = '1MB'; create index t_h on t (h)"));
        coppice::eventually("several processes spill", || held(&server) > 3 || build.is_finished());
        assert!(held(&server) > 3, "nothing was spilled");
    });
    session.sql("select bt_index_check('t_h', true)");
    flush(&server);
    coppice::eventually("the server lets go of temporary files", || {
        temporary(&server).is_empty() && held(&server) == 1
    });
}
