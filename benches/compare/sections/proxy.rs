//! The proxy against the bare socket and PgBouncer, all three in front of the same Postgres.
//!
//! Over Unix sockets each, so that the proxies are compared, not what carries the bytes; TCP on top
//! of that is measured apart.

use super::{Bench, What};
use crate::bouncer::Bouncer;
use crate::report::Better;
use coppice::Directory;
use coppice::sides::{Side, turns};

/// Clients of the loads.
const CLIENTS: [u64; 2] = [1, 4];

/// Loads through each, and connections, all over Unix sockets; and through the proxies over TCP.
pub(crate) fn run(bench: &mut Bench<'_>, directory: &Directory) {
    let direct = bench.systems[0].side().with_name("direct");
    let [local, tcp] = bench.systems[0].proxied().expect("ours has a proxy");
    let (mut sides, mut over_tcp) = (vec![local, direct.clone()], vec![tcp, direct]);
    // Held, as it ends when it is dropped.
    let bouncer = Bouncer::start(&sides[1], directory.path());
    match &bouncer {
        Ok(bouncer) => {
            sides.push(bouncer.local_side());
            over_tcp.push(bouncer.side());
        }
        Err(why) => {
            println!("!!! SKIPPED pgbouncer: {why}");
            bench.report.skip(vec![("pgbouncer".to_owned(), why.clone())]);
        }
    }
    let seconds = bench.config.seconds.to_string();
    for (load, flags, sides) in
        [("select", &["-S"][..], &sides), ("tpcb", &[], &sides), ("tcp.select", &["-S"], &over_tcp)]
    {
        for clients in CLIENTS {
            let (jobs, clients) = (clients.min(2).to_string(), clients.to_string());
            let args = [&["-n", "-c", &clients, "-j", &jobs, "-T", &seconds], flags].concat();
            compare(bench, sides, &format!("proxy.{load}.{clients}"), &args);
        }
    }
    compare(
        bench,
        &sides,
        "proxy.connect",
        &["-n", "-S", "-C", "-c", "4", "-j", "2", "-T", &seconds],
    );
}

fn compare(bench: &mut Bench<'_>, sides: &[Side], key: &str, args: &[&str]) {
    let rounds = bench.config.long_rounds;
    let mut values = vec![Vec::new(); sides.len()];
    for round in 0..rounds {
        for nth in turns(usize::try_from(round).unwrap_or(0), sides.len()) {
            bench.begin_turn(key, round, rounds, 0);
            sides[1].sql("checkpoint");
            values[nth].push(sides[nth].tps(args));
            sides[1].sql("checkpoint");
        }
    }
    let what = format!("pgbench {}", args.join(" "));
    let values = sides.iter().map(|side| side.name.clone()).zip(values).collect();
    bench.add(What { key, what: &what, unit: "tps", better: Better::More }, values);
}
