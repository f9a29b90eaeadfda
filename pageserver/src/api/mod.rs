//! The HTTP API: JSON under `/v1`, problem+json errors, an OpenAPI document and Prometheus metrics.
//!
//! Handlers only translate: a request into a call of the branch or import service, its result into
//! an answer. What a name may be, what is refused and why is decided below this module. What is
//! kept here, for every route alike: the bearer token, limits on size and time, one error format,
//! one log line and one set of metrics per request, and that a change once begun runs to its end
//! even when the client hangs up.
//!
//! Read `router.rs` first; `docs/api.md` is for users.

mod app;
mod auth;
mod extract;
mod faults;
mod metrics;
mod observe;
mod openapi;
mod operate;
mod problem;
pub mod property;
mod router;
mod serve;
#[cfg(test)]
mod tests;
mod v1;

pub use app::App;
pub use auth::Token;
pub use metrics::{Counter, Gauge, Histogram, Metrics};
pub use openapi::document;
pub use router::router;
pub use serve::serve;
