//! A branch is made, changed, reset and deleted on real Postgres.

use coppice::{Directory, Server};
use pageserver::fs::mount::IoUring;
use std::sync::Arc;

#[test]
fn a_branch_is_private_and_goes_back_to_its_parent() {
    let can = IoUring::On.prepare();
    if !can {
        eprintln!(
            "NOT TESTED over io_uring: FUSE has none here (Linux 6.14 and later do), or it may not \
             be used"
        );
    }
    for (wanted, expected) in [("on", can), ("off", false)] {
        let mut server = Server::start_with(Arc::new(Directory::new()), &["--io-uring", wanted]);
        let said = format!("io_uring={expected}");
        assert_eq!(
            server.log().matches(&said).count(),
            2,
            "both mounts are served so: {}",
            server.log()
        );
        server.sql("main", "create table t as select 1 as a").unwrap();
        let client = server.client();
        client
            .create(&api::types::CreateBranch { name: "feature/x".into(), ..Default::default() })
            .unwrap();
        server.sql("feature/x", "drop table t").unwrap();
        assert_eq!(server.sql("main", "select a from t").unwrap(), "1");
        client.reset("feature/x", &Default::default()).unwrap();
        assert_eq!(server.sql("feature/x", "select a from t").unwrap(), "1");
        client.delete("feature/x").unwrap();
        let error = server.sql("main", "select 1 from nothing").unwrap_err();
        assert!(error.contains("nothing"), "{error}");
        assert!(server.stop().success());
        server.restart();
        assert_eq!(server.sql("main", "select a from t").unwrap(), "1");
    }
}
