//! `/v1/branches`: create, show, change and delete branches.

use std::sync::Arc;

use ::api::types::{
    Branch, BranchList, Connection, CreateBranch, History, NewPassword, ResetBranch, RestoreBranch,
    SettingsOutcome, UpdateBranch, UpdateSettings,
};
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::Deserialize;
use utoipa::IntoParams;

use super::{Handled, paths};
use crate::api::app::App;
use crate::api::extract::{Body, Caller, Name, Named, OptionalBody, Params};
use crate::api::faults::{Always, BadInput, Clash, Missing, NoRoom, Takes};
use crate::api::observe::Subject;
use crate::api::problem::Fault;
use crate::branches::BranchPage;
use crate::compute::SettingsChange;
use crate::secret::Secret;

type Service = State<Arc<App>>;

/// Most branches on a page, and how many there are without a limit.
const LIMIT_MAX: usize = 100_000;

/// Which branches to list.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(in crate::api) struct ListQuery {
    /// What the names begin with.
    #[serde(default)]
    prefix: String,
    /// `next` of the page before; the first page if left out.
    cursor: Option<String>,
    /// Most branches to answer with, 1 to 100000.
    limit: Option<usize>,
}

/// Branches, by name.
#[utoipa::path(
    get, path = "/v1/branches", tag = "branches", params(ListQuery),
    responses((status = 200, description = "A page of branches", body = BranchList),
        Always, BadInput)
)]
pub(in crate::api) async fn list(
    State(app): Service,
    Params(ListQuery { prefix, cursor: after, limit }): Params<ListQuery>,
) -> Handled<Json<BranchList>> {
    if limit.is_some_and(|limit| !(1..=LIMIT_MAX).contains(&limit)) {
        let detail = format!("`limit` must be a number from 1 to {LIMIT_MAX}");
        return Err(Fault::new(StatusCode::BAD_REQUEST, "bad_query", detail));
    }
    let limit = Some(limit.unwrap_or(LIMIT_MAX));
    let (branches, next) = app.branches.list(BranchPage { prefix, after, limit }).await;
    Ok(Json(BranchList { branches: branches.into_iter().map(Branch::from).collect(), next }))
}

/// Create a branch from the head of its parent, or from a moment `at` of the parent's past, in
/// constant time and without touching the parent.
#[utoipa::path(
    post, path = "/v1/branches", tag = "branches", request_body = CreateBranch,
    responses(
        (status = 201, description = "Created; `Location` is its path", body = Branch),
        Always, Takes, Missing, Clash, NoRoom,
    )
)]
pub(in crate::api) async fn create(
    State(app): Service,
    Caller(actor): Caller,
    Body(request): Body<CreateBranch>,
) -> Handled<Response> {
    let subject = Subject(request.name.clone());
    let outcome = match request.try_into() {
        Ok(new) => app.branches.create(actor, new).await,
        Err(error) => Err(error),
    };
    // The fault, too, carries the name to the log line.
    Ok(match outcome {
        Ok(branch) => (Extension(subject), created(branch.into())).into_response(),
        Err(error) => (Extension(subject), Fault::from(error)).into_response(),
    })
}

/// One branch.
#[utoipa::path(
    get, path = "/v1/branches/{name}", tag = "branches", params(BranchName),
    responses((status = 200, description = "The branch", body = Branch), Always, BadInput, Missing)
)]
pub(in crate::api) async fn show(State(app): Service, Named(name): Named) -> Handled<Json<Branch>> {
    Ok(Json(app.branches.show(&name).await?.into()))
}

/// Create the branch unless it exists. An existing branch is left as it is, even when the body
/// names another parent. The name in the path wins over one in the body; the body may be left out.
#[utoipa::path(
    put, path = "/v1/branches/{name}", tag = "branches", params(BranchName),
    request_body = Option<CreateBranch>,
    responses(
        (status = 201, description = "Created", body = Branch),
        (status = 200, description = "Was there already, untouched", body = Branch),
        Always, Takes, Missing, Clash, NoRoom,
    )
)]
pub(in crate::api) async fn ensure(
    State(app): Service,
    Caller(actor): Caller,
    Name(name): Name,
    OptionalBody(request): OptionalBody<CreateBranch>,
) -> Handled<Response> {
    let new = CreateBranch { name, ..request }.try_into()?;
    let (branch, is_new) = app.branches.ensure(actor, new).await?;
    let branch = Branch::from(branch);
    Ok(if is_new { created(branch) } else { Json(branch).into_response() })
}

/// Rename a branch, protect it from reset and delete, or say what its Postgres may do beyond its
/// own data, and how long its past is kept.
#[utoipa::path(
    patch, path = "/v1/branches/{name}", tag = "branches", params(BranchName),
    request_body = UpdateBranch,
    responses((status = 200, description = "Changed", body = Branch),
        Always, Takes, Missing, Clash, NoRoom)
)]
pub(in crate::api) async fn update(
    State(app): Service,
    Caller(actor): Caller,
    Named(name): Named,
    Body(request): Body<UpdateBranch>,
) -> Handled<Json<Branch>> {
    Ok(Json(app.branches.update(actor, &name, request.try_into()?).await?.into()))
}

/// Throw the branch's own changes away: back to its parent's head, or to a moment `at` of its past.
/// The body may be left out.
#[utoipa::path(
    post, path = "/v1/branches/{name}/reset", tag = "branches", params(BranchName),
    request_body = Option<ResetBranch>,
    responses(
        (status = 200, description = "Reset", body = Branch),
        Always, Takes, Missing, Clash, NoRoom,
    )
)]
pub(in crate::api) async fn reset(
    State(app): Service,
    Caller(actor): Caller,
    Name(name): Name,
    OptionalBody(request): OptionalBody<ResetBranch>,
) -> Handled<Json<Branch>> {
    let at = request.at.map(Into::into);
    Ok(Json(app.branches.reset(actor, &name, at).await?.into()))
}

/// Take a branch to a moment of its own past, which may be before it was made. Its name, URL and
/// settings stay; the state before the restore is kept as branch `keep_as`, or else given up.
#[utoipa::path(
    post, path = "/v1/branches/{name}/restore", tag = "branches", params(BranchName),
    request_body = RestoreBranch,
    responses(
        (status = 200, description = "Restored", body = Branch),
        Always, Takes, Missing, Clash, NoRoom,
    )
)]
pub(in crate::api) async fn restore(
    State(app): Service,
    Caller(actor): Caller,
    Name(name): Name,
    Body(request): Body<RestoreBranch>,
) -> Handled<Json<Branch>> {
    Ok(Json(app.branches.restore(actor, &name, request.into()).await?.into()))
}

/// The moments that a branch can be restored to, or branched from.
#[utoipa::path(
    get, path = "/v1/branches/{name}/history", tag = "branches", params(BranchName),
    responses((status = 200, description = "The ranges", body = History), Always, BadInput, Missing)
)]
pub(in crate::api) async fn history(
    State(app): Service,
    Named(name): Named,
) -> Handled<Json<History>> {
    Ok(Json(app.branches.history(&name).await?.into()))
}

/// Delete a branch. Its children live on.
#[utoipa::path(
    delete, path = "/v1/branches/{name}", tag = "branches", params(BranchName),
    responses((status = 204, description = "Deleted"), Always, BadInput, Missing, Clash, NoRoom)
)]
pub(in crate::api) async fn delete(
    State(app): Service,
    Caller(actor): Caller,
    Name(name): Name,
) -> Handled<StatusCode> {
    app.branches.delete(actor, &name).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Stop the branch's Postgres, closing its connections; the next connection wakes it.
#[utoipa::path(
    post, path = "/v1/branches/{name}/suspend", tag = "branches", params(BranchName),
    responses((status = 200, description = "Suspended", body = Branch),
        Always, BadInput, Missing, Clash)
)]
pub(in crate::api) async fn suspend(
    State(app): Service,
    Caller(actor): Caller,
    Named(name): Named,
) -> Handled<Json<Branch>> {
    Ok(Json(app.branches.suspend(actor, &name).await?.into()))
}

/// Start the branch's Postgres; answers once it accepts connections.
#[utoipa::path(
    post, path = "/v1/branches/{name}/wake", tag = "branches", params(BranchName),
    responses((status = 200, description = "Running", body = Branch),
        Always, BadInput, Missing, Clash, NoRoom)
)]
pub(in crate::api) async fn wake(
    State(app): Service,
    Caller(actor): Caller,
    Named(name): Named,
) -> Handled<Json<Branch>> {
    Ok(Json(app.branches.wake(actor, &name).await?.into()))
}

/// Change settings of the branch's Postgres, also one that does not run or cannot start.
#[utoipa::path(
    patch, path = "/v1/branches/{name}/settings", tag = "branches", params(BranchName),
    request_body = UpdateSettings,
    responses((status = 200, description = "Changed", body = SettingsOutcome),
        Always, Takes, Missing, Clash, NoRoom)
)]
pub(in crate::api) async fn settings(
    State(app): Service,
    Caller(actor): Caller,
    Named(name): Named,
    Body(UpdateSettings { set, unset }): Body<UpdateSettings>,
) -> Handled<Json<SettingsOutcome>> {
    let change = SettingsChange { set, unset };
    let at_next_start = app.branches.set_postgres(actor, &name, change).await?;
    Ok(Json(SettingsOutcome { at_next_start }))
}

/// Give a role of the branch a new password and let it log in, whatever was done to the role. Role
/// `postgres` is made anew if it is missing. The body may be left out.
#[utoipa::path(
    post, path = "/v1/branches/{name}/password", tag = "branches", params(BranchName),
    request_body = Option<NewPassword>,
    responses((status = 200, description = "The URL with the password", body = Connection),
        Always, Takes, Missing, Clash, NoRoom)
)]
pub(in crate::api) async fn password(
    State(app): Service,
    Caller(actor): Caller,
    Named(name): Named,
    OptionalBody(NewPassword { role, password }): OptionalBody<NewPassword>,
) -> Handled<Response> {
    let password = password.map(Secret::from);
    Ok(secret_url(&app.branches.new_password(actor, &name, role, password).await?))
}

/// What the connection URL is for.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(in crate::api) struct UrlQuery {
    /// Database; that of the branch's login if left out.
    database: Option<String>,
    /// Role; that of the branch's login if left out.
    role: Option<String>,
}

/// A URL that connects to the branch through the proxy.
#[utoipa::path(
    get, path = "/v1/branches/{name}/connection", tag = "branches", params(BranchName, UrlQuery),
    responses((status = 200, description = "The URL", body = Connection), Always, BadInput, Missing)
)]
pub(in crate::api) async fn connection(
    State(app): Service,
    Named(name): Named,
    Params(target): Params<UrlQuery>,
) -> Handled<Response> {
    let url = app.branches.connection(&name, target.database.as_deref(), target.role.as_deref())?;
    Ok(secret_url(&url))
}

/// A URL that holds a password.
fn secret_url(url: &Secret) -> Response {
    let connection = Connection { url: url.expose().to_owned() };
    ([(header::CACHE_CONTROL, "no-store")], Json(connection)).into_response()
}

/// The name in the path, for the OpenAPI document.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(
    dead_code,
    reason = "read by the OpenAPI derive only; the handlers take the name from `extract::Name`"
)]
pub(in crate::api) struct BranchName {
    /// Branch name, or its label where no data is taken away, with `/` as `%2F`. A plain `/` works
    /// too, unless the name's last part is one of `reset`, `restore`, `suspend`, `wake`,
    /// `connection`, `history`, `logs`, `settings` and `password`.
    #[param(example = "feature%2Flogin")]
    name: String,
}

fn created(branch: Branch) -> Response {
    let location = paths::branch(&branch.name);
    (StatusCode::CREATED, [(header::LOCATION, location)], Json(branch)).into_response()
}
