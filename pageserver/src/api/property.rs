//! What must hold for any bytes that a request carries, for fuzzing and random tests.
//!
//! Invariants checked: nothing panics; a body that is refused is refused with 400 or 422 and a
//! reason; a body that is accepted is written and read again as the same; a name that is accepted
//! is a path segment; a moment means the same when it is written out; a path whose
//! name was joined names the same branch.

use ::api::types::{CreateBranch, CreateImport, Moment, ResetBranch, RestoreBranch, UpdateBranch};
use axum::extract::Query;
use axum::http::{HeaderValue, Uri};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::extract::parse;
use super::v1::branches::UrlQuery;
use super::v1::logs::LogQuery;
use super::v1::paths::{BRANCHES, joined};
use crate::branches::rules;
use crate::import::source;
use crate::moment::wal::Lsn;

/// Checks all of it on `bytes`, taken as the body of each request and, where they are text, as each
/// part of it.
///
/// # Panics
/// If something does not hold.
pub fn request(bytes: &[u8]) {
    if let Some(body) = body::<CreateBranch>(bytes) {
        name(&body.name);
        body.at.iter().for_each(moment);
    }
    if let Some(body) = body::<UpdateBranch>(bytes) {
        body.name.iter().for_each(|text| name(text));
    }
    if let Some(body) = body::<ResetBranch>(bytes) {
        body.at.iter().for_each(moment);
    }
    if let Some(body) = body::<RestoreBranch>(bytes) {
        moment(&body.at);
        body.keep_as.iter().for_each(|text| name(text));
    }
    if let Some(body) = body::<CreateImport>(bytes) {
        name(&body.name);
        source::property(&body.source);
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    name(text);
    source::property(text);
    if let Ok(read) = text.parse::<Moment>() {
        moment(&read);
    }
    path(text);
    path(&format!("{BRANCHES}{text}"));
}

fn body<T: DeserializeOwned + Serialize>(bytes: &[u8]) -> Option<T> {
    match parse::<T>(bytes) {
        Err(fault) => {
            assert!([400, 422].contains(&fault.status.as_u16()), "{fault:?}");
            assert!(!fault.code.is_empty() && !fault.detail.is_empty(), "{fault:?}");
            None
        }
        Ok(value) => {
            let written = serde_json::to_vec(&value).expect("what was read can be written");
            let again: T = parse(&written).expect("what was written can be read");
            assert_eq!(serde_json::to_vec(&again).ok(), Some(written));
            Some(value)
        }
    }
}

fn name(text: &str) {
    let unknown = rules::not_found(text, ["main", "feature/login"].into_iter());
    assert!(unknown.detail.len() < 1000, "{} bytes", unknown.detail.len());
    if let Err(error) = rules::check(text) {
        assert!(error.detail.len() < 2000 && !error.detail.contains(char::is_control), "{error}");
        return;
    }
    assert!((1..=rules::MAX_NAME_BYTES).contains(&text.len()), "{text:?}");
    let location = format!("{BRANCHES}{}", ::api::percent::encode(text));
    assert!(HeaderValue::from_str(&location).is_ok(), "{location:?}");
    let uri: Uri = location.parse().expect("the path of a branch");
    assert!(uri.path() == location && joined(&uri).is_none(), "{uri}");
}

fn moment(moment: &Moment) {
    assert!(moment.to_string().chars().count() <= 60, "{moment}");
    match moment {
        Moment::Time(time) => assert_eq!(time.to_string().parse().as_ref(), Ok(moment)),
        Moment::Position(position) => assert_eq!(position.to_string().parse().as_ref(), Ok(moment)),
        Moment::Lsn(text) => {
            if let Some(lsn) = Lsn::parse(text) {
                assert_eq!(Lsn::parse(&lsn.to_string()).map(|lsn| lsn.0), Some(lsn.0), "{text:?}");
            }
        }
    }
}

fn path(text: &str) {
    let Ok(uri) = text.parse::<Uri>() else { return };
    if let Err(error) = Query::<UrlQuery>::try_from_uri(&uri) {
        assert!(!error.body_text().is_empty());
    }
    if let Err(error) = Query::<LogQuery>::try_from_uri(&uri) {
        assert!(!error.body_text().is_empty());
    }
    let Some(joined_uri) = joined(&uri) else { return };
    assert_eq!(joined_uri.query(), uri.query());
    assert_eq!(joined_uri.path().replace("%2F", "/"), uri.path().replace("%2F", "/"));
    let name = joined_uri.path().strip_prefix(BRANCHES).expect("the path of a branch");
    assert!(name.split('/').count() <= 2, "{name:?}");
    assert!(joined(&joined_uri).is_none(), "{joined_uri}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::disk::random::Random;

    #[test]
    fn holds_for_mixtures_of_good_requests() {
        let pieces = [
            "{\"name\":\"a/b\"",
            "}",
            "{\"at\":{\"time\":\"2026-11-20T10:00:00Z\"}}",
            "{\"at\":{\"lsn\":\"0/16B3748\"}",
            ",\"parent\":\"main\"",
            "\"keep_as\":null",
            "{\"at\":{\"position\":5},",
            "1h30m",
            "0/16B3748",
            "7",
            "/v1/branches/",
            "feature/login",
            "/reset",
            "?database=a%20b&role=x",
            "%2f",
            "ä",
            "\0",
            "postgresql://u:p@h/d",
            "?password=x&a=b",
            "{\"name\":\"n\",\"source\":\"postgres://u:%41@h\",\"mode\":\"physical\"}",
            "x",
            "-",
            "@",
        ];
        let mut random = Random(5);
        for _ in 0..20_000 {
            let count = random.below(4);
            let piece = |_| pieces[usize::try_from(random.below(pieces.len() as u64)).unwrap()];
            let text: String = (0..=count).map(piece).collect();
            request(text.as_bytes());
        }
        request(&[b'x'; 100]);
        request(&[0xff, 0xfe]);
    }
}
