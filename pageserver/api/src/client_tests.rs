//! The client against small servers that answer once with fixed bytes.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::thread::JoinHandle;

use super::*;

/// Answers one request with `answer`; joining gives the request line and headers.
fn answer_once(answer: &'static str) -> (String, JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let thread = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut head = String::new();
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        while !head.ends_with("\r\n\r\n") {
            assert!(reader.read_line(&mut head).unwrap() > 0, "connection ended in the head");
        }
        stream.write_all(answer.as_bytes()).unwrap();
        head
    });
    (url, thread)
}

#[test]
fn sends_the_token_and_keeps_a_slash_in_one_segment() {
    let (url, server) = answer_once("HTTP/1.1 204 No Content\r\n\r\n");
    Client::new(&url, Some("secret".to_owned())).unwrap().delete("feature/lögin").unwrap();
    let head = server.join().unwrap().to_lowercase();
    assert!(head.starts_with("delete /v1/branches/feature%2fl%c3%b6gin http/1.1\r\n"), "{head}");
    assert!(head.contains("authorization: bearer secret\r\n"), "{head}");
}

#[test]
fn a_problem_becomes_an_error_with_the_servers_words() {
    let body = r#"{"type":"about:blank","title":"Not Found","status":404,
        "code":"branch_not_found","detail":"no branch `x`"}"#;
    let answer = format!("HTTP/1.1 404 Not Found\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let (url, _server) = answer_once(answer.leak());
    let error = Client::new(&url, None).unwrap().get("x").unwrap_err();
    assert_eq!((error.status, error.code.as_str()), (404, "branch_not_found"));
    assert_eq!(error.to_string(), "no branch `x`");
}

#[test]
fn says_where_the_token_is_found() {
    let body = r#"{"type":"about:blank","title":"Unauthorized","status":401,
        "code":"unauthorized","detail":"wrong token"}"#;
    let answer =
        format!("HTTP/1.1 401 Unauthorized\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let (url, _server) = answer_once(answer.leak());
    let error = Client::new(&url, None).unwrap().status().unwrap_err();
    assert!(error.to_string().contains("COPPICE_TOKEN_FILE"), "{error}");
}

#[test]
fn an_answer_of_something_else_is_named() {
    let (url, _server) = answer_once("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello");
    let error = Client::new(&url, None).unwrap().status().unwrap_err();
    assert_eq!(error.code, "bad_answer");
    let (url, _server) = answer_once(
        "HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n",
    );
    let error = Client::new(&url, None).unwrap().status().unwrap_err();
    assert_eq!((error.status, error.code.as_str()), (302, "bad_answer"));
}

#[test]
fn an_oversized_answer_is_refused() {
    let (url, _server) = answer_once("HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n{}");
    let error = Client::new(&url, None).unwrap().status().unwrap_err();
    assert_eq!(error.code, "bad_answer", "{error}");
}

#[test]
fn a_lost_answer_is_not_taken_for_a_server_that_is_down() {
    let (url, _server) = answer_once("HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{}");
    let error = Client::new(&url, None).unwrap().wake("x").unwrap_err();
    assert_eq!(error.code, "disconnected", "{error}");
}

#[test]
fn a_log_comes_line_by_line_until_its_end_or_until_it_is_enough() {
    const CHUNKS: &str = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n\
                          6\r\none\ntw\r\n8\r\no\n\nthree\r\n";
    let read = |answer: &'static str, enough: usize| {
        let (url, server) = answer_once(answer);
        let mut lines = Vec::new();
        let outcome = Client::new(&url, None).unwrap().logs("a/b", 7, true, |line| {
            lines.push(line.to_owned());
            if lines.len() == enough { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        let head = server.join().unwrap();
        assert!(head.starts_with("GET /v1/branches/a%2Fb/logs?lines=7&follow=true "), "{head}");
        (lines, outcome)
    };
    let whole = format!("{CHUNKS}0\r\n\r\n");
    assert_eq!(
        read(whole.leak(), 9),
        (["one", "two", "", "three"].map(str::to_owned).into(), Ok(()))
    );
    assert_eq!(read(CHUNKS, 2), (["one", "two"].map(str::to_owned).into(), Ok(())));
    let (lines, outcome) = read(CHUNKS, 9);
    assert_eq!((lines.len(), outcome.unwrap_err().code.as_str()), (3, "disconnected"));
}

#[test]
fn a_server_that_is_down_gives_the_remedy() {
    // Bound and dropped: nothing listens there now.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = Client::new(&format!("http://{address}"), None).unwrap().list().unwrap_err();
    assert_eq!((error.status, error.code.as_str()), (0, "unreachable"));
    let words = error.to_string();
    assert!(
        words.contains("pageserver serve --data DIR") && words.contains("COPPICE_API"),
        "{words}"
    );
}

#[test]
fn only_plain_http_addresses_are_accepted() {
    for good in ["http://127.0.0.1:8432", "http://localhost:1/", "http://[::1]:8432"] {
        assert!(Client::new(good, None).is_ok(), "{good}");
    }
    for bad in [
        "",
        "localhost:8432",
        "ftp://h",
        "https://h",
        "http://u:p@h",
        "http://h/x",
        "http://h?x=1",
        "http://",
    ] {
        assert_eq!(Client::new(bad, None).unwrap_err().code, "bad_api_url", "{bad}");
    }
}

#[test]
fn a_token_that_could_split_the_header_is_refused() {
    let error = Client::new(DEFAULT_API, Some("a\r\nx: y".to_owned())).unwrap_err();
    assert_eq!(error.code, "bad_token");
}

#[test]
fn debug_shows_no_token() {
    let client = Client::new(DEFAULT_API, Some("secret".to_owned())).unwrap();
    assert!(!format!("{client:?}").contains("secret"));
}
