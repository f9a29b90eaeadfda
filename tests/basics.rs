//! A branch is made, changed, reset and deleted on real Postgres.

use coppice::Server;

#[test]
fn a_branch_is_private_and_goes_back_to_its_parent() {
    let mut server = Server::start();
    server.sql("main", "create table t as select 1 as a").unwrap();
    let client = server.client();
    client.create(&api::types::CreateBranch { name: "feature/x".into(), ..Default::default() }).unwrap();
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
