//! pageserver
use pageserver::fs::mount::Mount;
use pageserver::storage::{disk::*, store::*, catalog::*};
use std::sync::Arc;
fn main() {
    tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).init();
    let a: Vec<String> = std::env::args().collect();
    let disk = LocalDisk::open(std::path::Path::new(&a[1]), &STORE_DIRECTORIES).expect("disk");
    let store = Arc::new(Store::open(Arc::new(disk), 42).expect("store"));
    let s2 = store.clone();
    std::thread::spawn(move || loop { s2.tick(); std::thread::sleep(std::time::Duration::from_millis(500)) });
    let m = Mount::new(store.clone(), std::path::Path::new(&a[2]), (a[3].parse().expect("uid"), a[4].parse().expect("gid"))).expect("mount");
    let mut head = match store.catalog().branch("main") {
        Some(b) => { println!("{}", m.attach(pageserver::storage::page::TimelineId(b.timeline)).expect("attach").display()); pageserver::storage::page::TimelineId(b.timeline) }
        None => {
            let id = store.create_root().expect("root");
            let p = m.attach_new(id).expect("attach");
            store.publish(Update { put_branches: vec![("main".into(), BranchRecord { id: 1, timeline: id.0, parent: None, created_ns: 0, forked_ns: 0, protected: false, password: None })], ..Update::default() }).expect("publish");
            println!("{}", p.display()); id
        }
    };
    for line in std::io::stdin().lines() {
        let line = line.expect("line");
        if line == "q" { break }
        let t = std::time::Instant::now();
        let id = store.fork(head, |id| Update { put_branches: vec![(format!("b{}", id.0), BranchRecord { id: id.0, timeline: id.0, parent: Some(1), created_ns: 0, forked_ns: 0, protected: false, password: None })], ..Update::default() });
        let e = t.elapsed();
        match id { Ok(id) => { let p = m.attach(id).expect("attach"); println!("{} {:?}", p.display(), e); if line == "d" { head = id } } Err(e) => println!("error {e}") }
    }
    m.unmount().expect("unmount");
    store.close().expect("close");
}
