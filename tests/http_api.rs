//! The HTTP API as its clients see it. Every answer is checked against the OpenAPI document: the
//! route must be described there, with the status and the content type of the answer, and a JSON
//! object must hold what its schema requires and nothing that the schema does not know.

#![expect(clippy::unwrap_used, reason = "the lint knows test functions, but not their helpers")]

use coppice::{LIMIT, Server, Source};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use ureq::http::Request;

/// A server and its own description.
struct Api {
    server: Arc<Server>,
    token: String,
    document: Value,
}

struct Answer {
    status: u16,
    headers: ureq::http::HeaderMap,
    text: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap()
    }

    fn code(&self) -> String {
        self.json()["code"].as_str().unwrap_or_default().to_owned()
    }
}

fn send(url: &str, method: &str, token: Option<&str>, content_type: &str, body: &str) -> Answer {
    let agent =
        ureq::Agent::config_builder().http_status_as_error(false).proxy(None).build().new_agent();
    let mut request = Request::builder().method(method).uri(url);
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let result = if matches!(method, "GET" | "DELETE") {
        agent.run(request.body(()).unwrap())
    } else {
        agent.run(request.header("content-type", content_type).body(body.to_owned()).unwrap())
    };
    let mut response = result.unwrap();
    let text = response.body_mut().read_to_string().unwrap();
    Answer { status: response.status().as_u16(), headers: response.headers().clone(), text }
}

impl Api {
    fn start() -> Self {
        let server = Server::shared();
        let document = send(&format!("{}/openapi.json", server.api), "GET", None, "", "").json();
        Self { token: server.token(), server, document }
    }

    /// Sends with the token, and holds the answer against the document.
    #[track_caller]
    fn call(&self, method: &str, path: &str, body: &str) -> Answer {
        let url = format!("{}{path}", self.server.api);
        let answer = send(&url, method, Some(&self.token), "application/json", body);
        self.check(method, path, &answer);
        answer
    }

    #[track_caller]
    fn check(&self, method: &str, path: &str, answer: &Answer) {
        let path = path.split('?').next().unwrap();
        let parts: Vec<&str> = path.split('/').collect();
        let (_, item) = self.document["paths"]
            .as_object()
            .unwrap()
            .iter()
            .filter(|(pattern, _)| {
                let pattern: Vec<&str> = pattern.split('/').collect();
                pattern.len() == parts.len()
                    && pattern.iter().zip(&parts).all(|(a, b)| a.starts_with('{') || a == b)
            })
            .max_by_key(|(pattern, _)| !pattern.contains('{'))
            .unwrap_or_else(|| panic!("{path} is not described"));
        let operation = &item[method.to_lowercase()];
        let response = &operation["responses"][answer.status.to_string()];
        assert!(
            response.is_object(),
            "{method} {path}: {} is not described: {}",
            answer.status,
            answer.text
        );
        let Some((kind, content)) =
            response["content"].as_object().and_then(|content| content.iter().next())
        else {
            assert_eq!(answer.text, "");
            return;
        };
        let given = answer.headers["content-type"].to_str().unwrap();
        assert!(given.starts_with(kind.as_str()), "{method} {path}: {given}, described as {kind}");
        if let Some(name) = content["schema"]["$ref"].as_str() {
            let name = name.rsplit('/').next().unwrap();
            self.check_object(&self.document["components"]["schemas"][name], &answer.json());
        }
    }

    #[track_caller]
    fn check_object(&self, schema: &Value, object: &Value) {
        let known =
            schema["properties"].as_object().unwrap_or_else(|| panic!("no properties in {schema}"));
        for field in object.as_object().unwrap().keys() {
            assert!(known.contains_key(field), "{field} is not in {schema}");
        }
        for field in schema["required"].as_array().into_iter().flatten() {
            assert!(object.get(field.as_str().unwrap()).is_some(), "{field} is not in {object}");
        }
    }

    #[track_caller]
    fn refuses(&self, method: &str, path: &str, body: &str, status: u16, code: &str) {
        let answer = self.call(method, path, body);
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (status, code),
            "{method} {path} {body}: {}",
            answer.text
        );
    }
}

#[test]
fn a_branch_lives_and_dies() {
    let api = Api::start();
    let created = api.call("POST", "/v1/branches", r#"{"name":"feature/login","parent":"main"}"#);
    assert_eq!(created.status, 201);
    assert_eq!(created.headers["location"], "/v1/branches/feature%2Flogin");
    assert_eq!(created.json()["parent"], "main");
    api.refuses("POST", "/v1/branches", r#"{"name":"feature/login"}"#, 409, "branch_exists");
    assert_eq!(api.call("GET", "/v1/branches/feature%2Flogin", "").json()["name"], "feature/login");
    let list = api.call("GET", "/v1/branches", "").json();
    let names =
        list["branches"].as_array().unwrap().iter().map(|branch| branch["name"].as_str().unwrap());
    assert_eq!(names.filter(|name| ["main", "feature/login"].contains(name)).count(), 2);
    let path = "/v1/branches/feature%2Flogin";
    let before = api.call("GET", path, "").json()["timeline"].clone();
    assert_ne!(api.call("POST", &format!("{path}/reset"), "").json()["timeline"], before);
    assert_ne!(api.call("POST", &format!("{path}/reset"), "{}").json()["timeline"], before);
    assert_eq!(api.call("PATCH", path, r#"{"protected":true}"#).json()["protected"], true);
    api.refuses("DELETE", path, "", 409, "branch_protected");
    api.refuses("POST", &format!("{path}/reset"), "", 409, "branch_protected");
    let renamed = api.call("PATCH", path, r#"{"name":"done","protected":false}"#).json();
    assert_eq!((&renamed["name"], &renamed["protected"]), (&json!("done"), &json!(false)));
    api.refuses("GET", path, "", 404, "branch_not_found");
    assert_eq!(api.call("DELETE", "/v1/branches/done", "").status, 204);
    api.refuses("DELETE", "/v1/branches/done", "", 404, "branch_not_found");
}

#[test]
fn ensure_creates_once() {
    let api = Api::start();
    assert_eq!(
        api.call("PUT", "/v1/branches/once", r#"{"name":"ignored","parent":"main"}"#).status,
        201
    );
    let before = api.call("GET", "/v1/branches/once", "").json()["timeline"].clone();
    assert_eq!(api.call("PUT", "/v1/branches/once", "").status, 200);
    api.call("PUT", "/v1/branches/twice", "");
    let other = api.call("PUT", "/v1/branches/once", r#"{"parent":"twice"}"#);
    assert_eq!((other.status, &other.json()["parent"]), (200, &json!("main")), "untouched");
    assert_eq!(other.json()["timeline"], before, "untouched");
    api.refuses("PUT", "/v1/branches/thrice", r#"{"parent":"nowhere"}"#, 404, "branch_not_found");
}

#[test]
fn computes_and_connections() {
    let api = Api::start();
    api.call("PUT", "/v1/branches/awake", "");
    let path = "/v1/branches/awake";
    assert_eq!(api.call("POST", &format!("{path}/wake"), "").json()["state"], "running");
    assert!(api.call("GET", "/v1/status", "").json()["running"].as_u64().unwrap() >= 1);
    assert_eq!(api.call("POST", &format!("{path}/suspend"), "").json()["state"], "suspended");
    let connection = api.call("GET", &format!("{path}/connection?database=shop&role=ann"), "");
    assert_eq!(connection.headers["cache-control"], "no-store");
    let url = connection.json()["url"].as_str().unwrap().to_owned();
    assert_eq!(
        url,
        format!("postgresql://ann.awake@{}/shop", api.server.proxy),
        "no password of ann is known"
    );
    let own = api.call("GET", &format!("{path}/connection"), "").json()["url"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(own.starts_with("postgresql://postgres.awake:") && own.ends_with("/app"), "{own}");
    api.refuses("GET", &format!("{path}/connection?x=1"), "", 400, "bad_query");
    let logs = api.call("GET", &format!("{path}/logs?lines=3&follow=false"), "");
    assert_eq!(logs.headers["content-type"], "text/plain; charset=utf-8");
    assert_eq!(logs.text.lines().count(), 3, "{}", logs.text);
    assert_eq!(api.call("GET", &format!("{path}/logs?lines=0"), "").text, "");
    for query in ["lines=10001", "lines=-1", "lines=x", "follow=maybe", "tail=3"] {
        api.refuses("GET", &format!("{path}/logs?{query}"), "", 400, "bad_query");
    }
    api.refuses("GET", "/v1/branches/none/logs?follow=true", "", 404, "branch_not_found");
    api.refuses("GET", "/v1/branches/none/connection", "", 404, "branch_not_found");
}

#[test]
fn bad_requests_are_told_apart() {
    let api = Api::start();
    api.refuses("POST", "/v1/branches", "nonsense", 400, "bad_json");
    api.refuses("POST", "/v1/branches", r#"{"name":7}"#, 422, "bad_field");
    api.refuses("POST", "/v1/branches", r#"{"name":"a","colour":"red"}"#, 422, "bad_field");
    api.refuses("POST", "/v1/branches", &" ".repeat(10 << 20), 413, "body_too_large");
    api.refuses(
        "POST",
        "/v1/branches",
        r#"{"name":"a","parent":"nowhere"}"#,
        404,
        "branch_not_found",
    );
    api.refuses("GET", "/v1/branches/%ff", "", 400, "bad_path");
    api.refuses("POST", "/v1/branches", r#"{"name":"a b"}"#, 400, "bad_branch_name");
    api.refuses("DELETE", "/v1/branches/main", "", 409, "default_branch");
    api.refuses("POST", "/v1/branches/main/reset", "", 409, "no_parent");
    let url = format!("{}/v1/branches", api.server.api);
    let answer = send(&url, "POST", Some(&api.token), "text/plain", r#"{"name":"a"}"#);
    assert_eq!((answer.status, answer.code().as_str()), (415, "unsupported_media_type"));
}

#[test]
fn moments_are_asked_for_by_time_lsn_or_position() {
    let api = Api::start();
    let outside = "moment_outside_history";
    api.refuses("POST", "/v1/branches", r#"{"name":"past","at":{"position":7}}"#, 404, outside);
    api.refuses(
        "PUT",
        "/v1/branches/past",
        r#"{"at":{"time":"2001-01-01T00:00:00Z"}}"#,
        404,
        outside,
    );
    api.refuses("PUT", "/v1/branches/past", r#"{"at":{"time":"2001-01-01"}}"#, 422, "bad_field");
    api.refuses("PUT", "/v1/branches/past", r#"{"at":{"lsn":"16B3748"}}"#, 400, "invalid_moment");
    api.call("PUT", "/v1/branches/past", "");
    api.refuses(
        "POST",
        "/v1/branches/past/reset",
        r#"{"at":{"lsn":"FFFF/16B3748"}}"#,
        404,
        outside,
    );
    api.refuses("POST", "/v1/branches/past/restore", r#"{"at":{"position":7}}"#, 404, outside);
    api.refuses("POST", "/v1/branches/past/restore", "", 400, "bad_json");
    let history = api.call("GET", "/v1/branches/past/history", "").json();
    assert_eq!(
        (history["ranges"].as_array().unwrap().len(), &history["window_s"]),
        (1, &json!(3_600))
    );
    let position = history["ranges"][0]["to_position"].as_u64().unwrap();
    let taken = json!({"at": {"position": position}, "keep_as": "main"}).to_string();
    api.refuses("POST", "/v1/branches/past/restore", &taken, 409, "branch_exists");
    let kept = json!({"at": {"position": position}, "keep_as": "before"}).to_string();
    assert_eq!(api.call("POST", "/v1/branches/past/restore", &kept).status, 200);
    assert_eq!(api.call("GET", "/v1/branches/before", "").json()["parent"], "main");
}

#[test]
fn every_byte_of_the_store_belongs_to_somebody() {
    let api = Api::start();
    api.call("PUT", "/v1/branches/child", "");
    api.call("PUT", "/v1/branches/grandchild", r#"{"parent":"child"}"#);
    for branch in ["child", "grandchild"] {
        api.server
            .sql(branch, "create table t as select * from generate_series(1, 100000)")
            .unwrap();
    }
    for branch in ["main", "child", "grandchild"] {
        api.call("POST", &format!("/v1/branches/{branch}/suspend"), "");
    }
    let on_disk = || -> u64 {
        let store = api.server.data().join("store");
        let files = ["", "lanes", "layers"]
            .into_iter()
            .flat_map(|part| std::fs::read_dir(store.join(part)).unwrap());
        files
            .map(|file| file.unwrap().metadata().unwrap())
            .filter(|it| it.is_file())
            .map(|it| it.len())
            .sum()
    };
    // What each branch says of itself, what the whole says of it, and the disk.
    let agree = || {
        let (usage, before) = (api.call("GET", "/v1/usage", "").json(), on_disk());
        let branches = usage["branches"].as_array().unwrap();
        let nameless: u64 = usage["nameless"]
            .as_array()
            .unwrap()
            .iter()
            .map(|it| it["own_bytes"].as_u64().unwrap())
            .sum();
        let own: u64 = branches.iter().map(|branch| branch["own_bytes"].as_u64().unwrap()).sum();
        let same = branches.iter().all(|branch| {
            let shown = api
                .call("GET", &format!("/v1/branches/{}", branch["name"].as_str().unwrap()), "")
                .json();
            ["own_bytes", "freed_by_delete", "logical_bytes"]
                .iter()
                .all(|field| shown[field] == branch[field])
        });
        let total = usage["total_bytes"].as_u64().unwrap();
        (same
            && own + nameless + usage["reserve_bytes"].as_u64().unwrap() == total
            && total == before)
            .then_some(usage)
    };
    coppice::eventually("the sizes agree", || agree().is_some());
    let frees = |name: &str| {
        api.call("GET", &format!("/v1/branches/{name}"), "").json()["freed_by_delete"]
            .as_u64()
            .unwrap()
    };
    assert_eq!((frees("child"), frees("main")), (0, 0), "others were made from them");
    let (own, total) = (frees("grandchild"), on_disk());
    assert!(own > 1 << 20);
    api.call("DELETE", "/v1/branches/child", "");
    coppice::eventually("the child's timeline has no name", || {
        agree().is_some_and(|usage| usage["nameless"][0]["needed_by"] == json!(["grandchild"]))
    });
    assert!(frees("grandchild") > own, "its nameless ancestor goes with it");
    let both = frees("grandchild");
    api.call("DELETE", "/v1/branches/grandchild", "");
    coppice::eventually("the bytes are free", || {
        agree().is_some_and(|usage| usage["nameless"] == json!([]))
    });
    // Files of write-ahead lanes are kept for the next one.
    let usage = agree().unwrap_or_else(|| api.call("GET", "/v1/usage", "").json());
    println!("deletion frees {both} of {total} bytes; reserve {}", usage["reserve_bytes"]);
}

#[test]
fn imports_are_followed_by_their_id() {
    let api = Api::start();
    api.refuses("GET", "/v1/imports/none", "", 404, "import_not_found");
    api.refuses(
        "POST",
        "/v1/imports",
        r#"{"name":"copy","source":"nonsense"}"#,
        400,
        "invalid_source",
    );
    api.refuses("POST", "/v1/imports", r#"{"name":"copy"}"#, 422, "bad_field");
    let source = Source::start();
    let request = json!({"name": "copy", "source": source.url()}).to_string();
    let started = api.call("POST", "/v1/imports", &request);
    assert_eq!(started.status, 202, "{}", started.text);
    let id = started.json()["id"].as_str().unwrap().to_owned();
    let path = format!("/v1/imports/{id}");
    assert_eq!(started.headers["location"], path.as_str());
    let deadline = Instant::now() + LIMIT;
    let done = loop {
        let import = api.call("GET", &path, "").json();
        assert_eq!(import["name"], "copy");
        if import["state"] != "running" {
            break import;
        }
        assert!(Instant::now() < deadline, "{import}");
        std::thread::sleep(Duration::from_millis(100));
    };
    assert_eq!(done["state"], "done", "{done}");
    assert_eq!(api.call("GET", "/v1/branches/copy", "").json()["parent"], Value::Null);
    api.refuses("POST", "/v1/imports", &request, 409, "branch_exists");
}

#[test]
fn only_health_and_the_document_need_no_token() {
    let api = Api::start();
    let scheme = &api.document["components"]["securitySchemes"]["token"];
    assert_eq!((&scheme["type"], &scheme["scheme"]), (&json!("http"), &json!("bearer")));
    assert_eq!(api.document["openapi"], "3.1.0");
    let wrong = "0".repeat(api.token.len());
    for (path, method, operation) in operations(&api.document) {
        let url =
            format!("{}{}", api.server.api, path.replace("{name}", "main").replace("{id}", "x"));
        let open = operation["security"] == json!([{}]);
        for token in [None, Some(wrong.as_str()), Some(&wrong[1..])] {
            let answer = send(&url, &method, token, "application/json", "{}");
            if open {
                assert_eq!(answer.status, 200, "{method} {path}");
                continue;
            }
            assert_eq!(
                (answer.status, answer.code().as_str()),
                (401, "unauthorized"),
                "{method} {path}"
            );
            assert_eq!(answer.headers["www-authenticate"], "Bearer realm=\"coppice\"");
        }
    }
    let open =
        operations(&api.document).iter().filter(|(.., o)| o["security"] == json!([{}])).count();
    assert_eq!(open, 2);
}

#[test]
fn every_described_route_is_there() {
    let api = Api::start();
    let mut count = 0;
    for (path, method, _) in operations(&api.document) {
        let path = path.replace("{name}", "routed").replace("{id}", "none");
        let answer = api.call(&method, &path, "{}");
        assert_ne!(answer.status, 405, "{method} {path}");
        if answer.status == 404 {
            assert_ne!(answer.code(), "not_found", "{method} {path}");
        }
        count += 1;
    }
    assert_eq!(count, 22, "routes described");
    // References must resolve, or generated clients break.
    let text = api.document.to_string();
    for reference in text.split("\"#/components/schemas/").skip(1) {
        let name = reference.split('"').next().unwrap();
        assert!(api.document["components"]["schemas"][name].is_object(), "{name} is not described");
    }
}

fn operations(document: &Value) -> Vec<(String, String, Value)> {
    let paths: BTreeMap<String, BTreeMap<String, Value>> =
        serde_json::from_value(document["paths"].clone()).unwrap();
    paths
        .into_iter()
        .flat_map(|(path, item)| {
            item.into_iter().map(move |(method, o)| (path.clone(), method.to_uppercase(), o))
        })
        .collect()
}

#[test]
fn metrics_count_requests_and_show_the_status() {
    let api = Api::start();
    let value = |name: &str| -> f64 {
        let text = api.call("GET", "/metrics", "").text;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        line.unwrap_or_else(|| panic!("{name} is not in\n{text}"))
    };
    api.call("GET", "/v1/branches/none", "");
    let missed =
        r#"coppice_http_requests_total{route="/v1/branches/{name}",method="GET",status="404"}"#;
    let before = value(missed);
    api.call("GET", "/v1/branches/none", "");
    assert!(value(missed) > before, "counted");
    assert!(value(r#"coppice_http_request_seconds_count{route="/v1/branches/{name}"}"#) >= 2.0);
    assert!(value("coppice_branches ") >= 1.0);
    assert!(value("coppice_computes_running ") >= 0.0);
    let text = api.call("GET", "/metrics", "").text;
    for name in [
        "coppice_connections",
        "coppice_store_bytes",
        "coppice_free_bytes",
        "coppice_uptime_seconds",
    ] {
        assert!(
            text.contains(&format!("# TYPE {name} gauge\n{name} ")),
            "{name} is not in\n{text}"
        );
    }
}
