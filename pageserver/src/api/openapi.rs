//! The OpenAPI 3.1 document, assembled from the handlers' own annotations.
//!
//! Each group of errors that several routes share is one type here; a handler lists the groups that
//! it can answer with.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use ::api::types::Problem;
use axum::http::StatusCode;
use serde_json::json;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{ContentBuilder, OpenApi as Document, Ref, RefOr, Response, ResponseBuilder};
use utoipa::{IntoResponses, Modify, OpenApi};

use super::handlers::{branches, imports, server};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Coppice",
        description = "Branches of a Postgres database, in constant time. Errors are \
                       `application/problem+json`; their `code` is stable."
    ),
    paths(
        branches::list, branches::create, branches::show, branches::ensure, branches::update,
        branches::delete,
        branches::reset, branches::restore, branches::suspend, branches::wake, branches::connection,
        branches::history, imports::start, imports::show, server::usage, server::status,
        server::metrics, server::healthz,
        server::openapi
    ),
    components(schemas(Problem)),
    security(("token" = [])),
    modifiers(&Token),
)]
struct Api;

/// Declares the bearer token.
struct Token;

impl Modify for Token {
    fn modify(&self, document: &mut Document) {
        let scheme = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .description(Some("Contents of the file `api-token` in the server's data directory"))
            .build();
        document
            .components
            .get_or_insert_default()
            .add_security_scheme("token", SecurityScheme::Http(scheme));
    }
}

/// The document as JSON text. It never changes while the server runs, so it is made once.
pub fn document() -> &'static str {
    static TEXT: LazyLock<String> = LazyLock::new(|| {
        serde_json::to_string_pretty(&Api::openapi()).unwrap_or_else(|error| {
            panic!("the OpenAPI document has only string keys and plain values, and yet: {error}")
        })
    });
    &TEXT
}

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
        pub(super) struct $name;

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
