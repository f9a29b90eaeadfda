//! `/v1/imports`: copy a running Postgres into a new root branch.

use std::sync::Arc;

use ::api::types::{CreateImport, Import};
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};

use super::Handled;
use crate::api::app::App;
use crate::api::extract::{Body, Caller, Name};
use crate::api::faults::{Always, BadInput, Clash, Missing, NoRoom, Takes};
use crate::api::observe::Subject;
use crate::error::Error;

/// Start an import. It goes on after this answer, whether or not anyone polls it.
#[utoipa::path(
    post, path = "/v1/imports", tag = "imports", request_body = CreateImport,
    responses(
        (status = 202, description = "Started; poll `GET /v1/imports/{id}`, also given in \
            `Location`", body = Import),
        Always, Takes, Clash, NoRoom,
    )
)]
pub(in crate::api) async fn start(
    State(app): State<Arc<App>>,
    Caller(actor): Caller,
    Body(request): Body<CreateImport>,
) -> Handled<Response> {
    let subject = Subject(request.name.clone());
    let import = Import::from(app.imports.start(actor, request.into()).await?);
    let location = format!("/v1/imports/{}", import.id);
    Ok((StatusCode::ACCEPTED, [(header::LOCATION, location)], Extension(subject), Json(import))
        .into_response())
}

/// How far an import is.
#[utoipa::path(
    get, path = "/v1/imports/{id}", tag = "imports",
    params(("id" = String, Path, description = "Identifier from `POST /v1/imports`")),
    responses((status = 200, description = "The import", body = Import),
        Always, BadInput, Missing)
)]
pub(in crate::api) async fn show(
    State(app): State<Arc<App>>,
    Name(id): Name,
) -> Handled<Json<Import>> {
    let unknown = || {
        let detail = format!(
            "there is no import {id}; the server forgets old ones, and all of them when it restarts"
        );
        Error::not_found("import_not_found", detail)
    };
    Ok(Json(app.imports.get(&id).ok_or_else(unknown)?.into()))
}
