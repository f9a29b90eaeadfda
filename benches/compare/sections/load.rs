//! Loads of pgbench.

use super::{Bench, What};
use crate::report::Better;

/// Clients of TPC-B.
const CLIENTS: [u64; 3] = [1, 4, 16];

/// Rows by key, with everything in the system's cache.
pub(crate) fn select(bench: &mut Bench<'_>) {
    let seconds = bench.config.seconds.to_string();
    let args = ["-n", "-S", "-c", "4", "-j", "2", "-T", &seconds];
    let what = format!("pgbench {}", args.join(" "));
    for system in &mut bench.systems {
        let side = system.side();
        side.sql("select sum(abalance) from pgbench_accounts");
        side.pgbench(&args);
    }
    let rounds = bench.config.rounds;
    bench.compare_running(
        What { key: "select.cached", what: &what, unit: "tps", better: Better::More },
        rounds,
        |side| side.tps(&args),
    );
}

/// TPC-B with few and with many clients.
pub(crate) fn tpcb(bench: &mut Bench<'_>) {
    let seconds = bench.config.tpcb_seconds.to_string();
    let rounds = bench.config.rounds;
    for clients in CLIENTS {
        let (jobs, clients) = (clients.min(2).to_string(), clients.to_string());
        let args = ["-n", "-c", &clients, "-j", &jobs, "-T", &seconds];
        let (key, what) = (format!("tpcb.{clients}"), format!("pgbench {}", args.join(" ")));
        bench.compare_running(
            What { key: &key, what: &what, unit: "tps", better: Better::More },
            rounds,
            |side| side.tps(&args),
        );
    }
}
