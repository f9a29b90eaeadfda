//! Each way to name a branch, with psql.

use proxy::Limits;

use crate::world::World;

/// Runs the query and returns what psql prints, or the error.
async fn ask(world: &World, conninfo: &str, sql: &str) -> Result<String, String> {
    let output = world.psql(conninfo, sql).await;
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap().trim().to_owned();
    if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
}

#[tokio::test(flavor = "multi_thread")]
async fn psql_reaches_the_branch_it_names() {
    let world = World::start().await;
    let table = [
        ("sslmode=disable", "main"),
        ("sslmode=require", "main"),
        ("sslmode=disable options=branch=feature/x", "feature"),
        ("sslmode=require options='-c branch=feature/x'", "feature"),
        ("sslmode=require options=--branch=main", "main"),
        ("sslmode=disable dbname=app@feature/x", "feature"),
        ("sslmode=require dbname=app@feature/x", "feature"),
        ("sslmode=require host=feature-x.localhost", "feature"),
        ("sslmode=require host=feature-x.example.com", "feature"),
        ("sslmode=require host=feature-x.localhost options=branch=feature/x", "feature"),
        ("sslmode=require host=feature-x.example.com options=branch=main", "main"),
        ("sslmode=require host=feature-x.localhost sslsni=0", "main"),
        ("sslmode=disable dbname=@feature/x", "feature"),
    ];
    for (conninfo, server) in table {
        let sql = "select current_setting('cluster_name') || ' ' || current_database()";
        let database = if conninfo.contains("dbname=@") { "postgres" } else { "app" };
        assert_eq!(
            ask(&world, conninfo, sql).await,
            Ok(format!("{server} {database}")),
            "{conninfo}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_the_same_machine_come_through_a_socket() {
    let world = World::start().await;
    let directory = world.dir.display().to_string();
    let sql = "select current_setting('cluster_name') || ' ' || sum(length(repeat('x', n))) from \
               generate_series(1, 2000) n";
    for (conninfo, server) in [
        ("", "main"),
        ("dbname=app@feature/x", "feature"),
        ("options=branch=feature/x gssencmode=prefer", "feature"),
    ] {
        // The first host counts; psql would take an address before it.
        let conninfo = format!("host={directory} hostaddr='' {conninfo}");
        assert_eq!(
            ask(&world, &conninfo, sql).await,
            Ok(format!("{server} 2001000")),
            "{conninfo}"
        );
    }
    let conninfo = format!("host={directory} hostaddr='' dbname=app@nope");
    let error = ask(&world, &conninfo, "select 1").await.unwrap_err();
    assert!(error.contains("FATAL:  branch \"nope\" does not exist"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn other_options_reach_postgres() {
    let world = World::start().await;
    let conninfo = r"options='-c work_mem=5MB branch=feature/x -c application_name=a\\ b'";
    let sql = "select concat_ws('|', current_setting('cluster_name'), current_setting('work_mem'), \
               current_setting('application_name'))";
    // psql sets its own name unless told otherwise, and a parameter of that name goes before an
    // option.
    let conninfo = format!("{conninfo} fallback_application_name=''");
    let answer = ask(&world, &conninfo, sql).await.unwrap();
    assert!(answer.starts_with("feature|5MB|"), "{answer}");
    let error = ask(&world, "options='branch=main nonsense'", "select 1").await.unwrap_err();
    assert!(
        error.contains("invalid command-line argument") && error.contains("nonsense"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_branch_is_named_with_a_hint() {
    let world = World::start().await;
    for conninfo in
        ["dbname=app@nope", "sslmode=require host=nope.localhost", "options=branch=nope"]
    {
        let error = ask(&world, conninfo, "select 1").await.unwrap_err();
        assert!(error.contains("FATAL:  branch \"nope\" does not exist"), "{error}");
        assert!(error.contains("HINT:  `branchctl list` shows"), "{error}");
    }
    let error = world.connect("app@nope", "any").await.err().unwrap();
    assert_eq!(error.code().map(|code| code.code()), Some("3D000"));
    let error = ask(&world, "sslmode=require host=main.localhost dbname=app@feature/x", "select 1");
    let error = error.await.unwrap_err();
    assert!(error.contains("names two branches"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_can_verify_the_certificate() {
    let (plain, domain) =
        (World::start().await, World::under(Some("db.coppice.test"), Limits::default()).await);
    let table = [
        (&plain, "feature-x.localhost", Ok("feature")),
        (&plain, "localhost", Ok("main")),
        (&plain, "127.0.0.1", Ok("main")),
        (&plain, "feature-x.example.com", Err("does not match host name")),
        (&domain, "feature-x.db.coppice.test", Ok("feature")),
        (&domain, "feature-x.localhost", Ok("feature")),
        (&domain, "db.coppice.test", Ok("main")),
        (&domain, "a.feature-x.db.coppice.test", Err("does not match host name")),
    ];
    for (world, host, expected) in table {
        let verify = format!("sslmode=verify-full sslrootcert={}", world.certificate.display());
        let answer = ask(world, &format!("{verify} host={host}"), "show cluster_name").await;
        match (&answer, expected) {
            (Ok(name), Ok(expected)) => assert_eq!(name, expected, "{host}"),
            (Err(error), Err(words)) => assert!(error.contains(words), "{host}: {error}"),
            _ => panic!("{host}: {answer:?}"),
        }
    }
    let verify = format!("sslmode=verify-full sslrootcert={}", domain.certificate.display());
    let error = ask(&plain, &format!("{verify} host=localhost"), "select 1").await.unwrap_err();
    assert!(error.contains("certificate verify failed"), "by the CA of another: {error}");
}
