//! The OpenAPI 3.1 document, assembled from the handlers' own annotations.

use std::sync::LazyLock;

use ::api::types::Problem;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use utoipa::openapi::OpenApi as Document;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi};

use super::operate;
use super::v1::{branches, imports, logs, server};

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
        branches::history, logs::logs, branches::settings, branches::password, imports::start,
        imports::show, server::usage, server::status, operate::metrics, operate::healthz,
        show
    ),
    components(schemas(Problem)),
    security(("token" = [])),
    modifiers(&BearerScheme),
)]
struct Api;

/// Declares the bearer token.
struct BearerScheme;

impl Modify for BearerScheme {
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

/// This document. Needs no token.
#[utoipa::path(
    get, path = "/openapi.json", tag = "server", security(()),
    responses((status = 200, description = "OpenAPI 3.1 document", body = Object))
)]
pub(super) async fn show() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], document()).into_response()
}
