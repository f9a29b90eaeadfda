//! Support for the tests on real Postgres.
