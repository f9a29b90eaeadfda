//! Clients verify the server by the CA that it made, as docs/connecting.md says.

#![expect(clippy::unwrap_used, reason = "the lint knows test functions, but not their helpers")]

use coppice::{Directory, Server, postgres_program, program, serve_command};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;

/// Asks for TLS as Postgres clients do, and verifies as strictly as Python can.
const PYTHON: &str = "
import socket, ssl, sys
port, ca, host = sys.argv[1:]
server = socket.create_connection(('127.0.0.1', int(port)))
server.sendall(bytes([0, 0, 0, 8, 4, 210, 22, 47]))
assert server.recv(1) == b'S'
context = ssl.create_default_context(cafile=ca)
context.verify_flags |= ssl.VERIFY_X509_STRICT
with context.wrap_socket(server, server_hostname=host) as server:
    print([name for kind, name in server.getpeercert()['subjectAltName']])
";

fn python(server: &Server, ca: &Path, host: &str) -> Output {
    let mut command = Command::new("python3");
    command.args(["-c", PYTHON, &server.proxy.port().to_string()]).arg(ca).arg(host);
    command.output().expect("run python3")
}

/// What `psql` says that verifies the host name of branch `main`.
fn psql(server: &Server, ca: &Path) -> (String, String) {
    let url = server.url("main").replace("@127.0.0.1:", "@main.localhost:");
    // The host name says which branch.
    let url = url.replace("%40main", "");
    let mut psql = Command::new(postgres_program("psql"));
    psql.args(["-XAtqc", "select 1"]).arg(url).env("PGHOSTADDR", "127.0.0.1");
    let output = psql.env("PGSSLMODE", "verify-full").env("PGSSLROOTCERT", ca).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (text(output.stdout), text(output.stderr))
}

#[test]
fn clients_verify_each_host_name_by_the_ca() {
    let mut server = Server::start();
    let ca = server.data().join("tls/ca.crt");
    assert_eq!(server.client().status().unwrap().ca_file.as_deref(), ca.to_str());
    let mut branchctl = Command::new(program("branchctl"));
    branchctl.args(["--api", &server.api, "--token-file"]).arg(server.data().join("api-token"));
    let status = String::from_utf8(branchctl.arg("status").output().unwrap().stdout).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("CA file:"));
    assert_eq!(line.map(str::trim), ca.to_str(), "{status}");
    for (host, names) in [
        ("main.localhost", "['main.localhost']"),
        ("feature-login.localhost", "['feature-login.localhost']"),
        ("localhost", "['localhost', '127.0.0.1', '0:0:0:0:0:0:0:1']"),
        ("127.0.0.1", "['localhost', '127.0.0.1', '0:0:0:0:0:0:0:1']"),
    ] {
        let Output { stdout, stderr, .. } = python(&server, &ca, host);
        let (told, error) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
        assert_eq!(told.trim(), names, "{host}: {error}");
    }
    let refused = String::from_utf8(python(&server, &ca, "main.example.com").stderr).unwrap();
    assert!(refused.contains("CERTIFICATE_VERIFY_FAILED"), "{refused}");
    assert_eq!(psql(&server, &ca), ("1\n".to_owned(), String::new()));
    assert!(server.stop().success());
    server.restart();
    assert_eq!(psql(&server, &ca), ("1\n".to_owned(), String::new()), "after a restart");
}

#[test]
fn a_lost_key_is_named_and_a_certificate_of_the_user_needs_no_ca() {
    let directory = Arc::new(Directory::new());
    let mut server = Server::start_with(Arc::clone(&directory), &[]);
    assert!(server.stop().success());
    let [cert, key] = ["ca.crt", "ca.key"].map(|name| server.data().join("tls").join(name));
    let moved = directory.path().join("moved.key");
    std::fs::rename(&key, &moved).unwrap();
    let refused = serve_command(&directory, &[]).output().unwrap();
    let error = String::from_utf8_lossy(&refused.stderr).into_owned();
    let told = error.contains(key.to_str().unwrap()) && error.contains("put back");
    assert!(!refused.status.success() && told, "{error}");
    let args = ["--tls-cert", cert.to_str().unwrap(), "--tls-key", moved.to_str().unwrap()];
    let server = Server::start_with(directory, &args);
    assert_eq!(server.client().status().unwrap().ca_file, None);
    assert_eq!(server.sql("main", "select 1").unwrap(), "1");
}
