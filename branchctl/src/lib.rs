//! branchctl
