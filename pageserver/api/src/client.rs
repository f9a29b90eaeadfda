//! A blocking client of the HTTP API.
