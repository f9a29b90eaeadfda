//! The errors that routes can answer with, as groups for their lists of responses.

use std::collections::BTreeMap;

use axum::http::StatusCode;
use serde_json::json;
use utoipa::IntoResponses;
use utoipa::openapi::{ContentBuilder, Ref, RefOr, Response, ResponseBuilder};

type Responses = BTreeMap<String, RefOr<Response>>;

/// One kind of error that a route can answer with: status, an example of its code, when it comes.
fn fault(status: u16, code: &str, when: &str) -> (String, RefOr<Response>) {
    let title = StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
    let example = json!({
        "type": "about:blank", "title": title, "status": status, "code": code, "detail": when,
    });
    let content = ContentBuilder::new()
        .schema(Some(Ref::from_schema_name("Problem")))
        .example(Some(example))
        .build();
    let response = ResponseBuilder::new()
        .description(when)
        .content("application/problem+json", content)
        .build();
    (status.to_string(), RefOr::T(response))
}

/// Declares a type whose only use is to stand in a handler's list of responses.
macro_rules! faults {
    ($($(#[$doc:meta])* $name:ident: $($status:literal $code:literal $when:literal),+;)+) => {$(
        $(#[$doc])*
        pub(in crate::api) struct $name;

        impl IntoResponses for $name {
            fn responses() -> Responses {
                [$(fault($status, $code, $when)),+].into()
            }
        }
    )+};
}

faults! {
    /// On every route behind the token.
    Always:
        401 "unauthorized" "The bearer token is missing or wrong",
        500 "io" "The server's disk or the server itself failed; its log has the details",
        503 "unavailable" "Not possible now; it may be later";
    /// On a route without a token.
    Broken:
        500 "io" "The server's disk or the server itself failed; its log has the details",
        503 "unavailable" "Not possible now; it may be later";
    /// On routes with a name or a query.
    BadInput:
        400 "bad_query" "The path or the query is not well-formed";
    /// On routes with a body.
    Takes:
        400 "bad_json" "The body is not JSON, or the request asks for something invalid, such as a \
                        bad name",
        408 "body_timeout" "The body did not arrive in time",
        413 "body_too_large" "The body is larger than 64 KiB",
        415 "unsupported_media_type" "The body is not declared as application/json",
        422 "bad_field" "A field is missing, unknown or of the wrong type";
    /// On routes that name something.
    Missing:
        404 "branch_not_found" "What the request names does not exist";
    /// On routes that change something.
    Clash:
        409 "branch_exists" "The name is taken, or the branch is in a state that forbids this";
    /// On routes that write.
    NoRoom:
        507 "disk_full" "The disk has no room";
}
