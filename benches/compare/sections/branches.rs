//! Branches made, asked for their first row, and woken.

use super::{Bench, What};
use crate::report::Better;
use coppice::sides::turns;

/// Creation alone, then creation and wake to the first row.
pub(crate) fn run(bench: &mut Bench<'_>) {
    creates(bench);
    rows(bench);
}

const CREATE: What<'_> = What {
    key: "create",
    what: "POST /v1/branches, as the server took; btrfs subvolume snapshot; cp -a --reflink=always",
    unit: "ms",
    better: Better::Less,
};

fn creates(bench: &mut Bench<'_>) {
    let able: Vec<usize> =
        (0..bench.systems.len()).filter(|nth| bench.systems[*nth].branches()).collect();
    let rounds = bench.config.creates;
    let mut values = vec![Vec::new(); able.len()];
    let name = |round: u64| format!("create-{round}");
    for round in 0..rounds {
        for nth in turns(usize::try_from(round).unwrap_or(0), able.len()) {
            // A creation is short, and nothing was written that would have to be worked on later.
            if round == 0 {
                bench.begin_turn(CREATE.key, round, rounds, able[nth]);
            }
            values[nth].push(bench.systems[able[nth]].create(&name(round)));
        }
    }
    for nth in &able {
        (0..rounds).for_each(|round| bench.systems[*nth].remove(&name(round)));
    }
    let ours = values[0].clone();
    let names = able.iter().map(|nth| bench.systems[*nth].name().to_owned());
    let values = names.zip(values).collect();
    bench.add(CREATE, values);
    bench.report.add_absolute("create", &ours, &[50, 99]);
}

fn rows(bench: &mut Bench<'_>) {
    let (count, rounds) = (bench.systems.len(), bench.config.wakes);
    let (mut firsts, mut wakes) = (vec![Vec::new(); count], vec![Vec::new(); count]);
    for round in 0..rounds {
        let name = format!("row-{round}");
        for nth in turns(usize::try_from(round).unwrap_or(0), count) {
            bench.begin_turn("first_row", round, rounds, nth);
            let system = bench.systems[nth].as_mut();
            if system.branches() {
                firsts[nth].push(system.first_row(&name));
                wakes[nth].push(system.wake(&name));
                system.remove(&name);
            } else {
                // What branches nothing has its one cluster, and the best it can do is to start
                // that.
                wakes[nth].push(system.wake(&name));
                firsts[nth].push(wakes[nth][wakes[nth].len() - 1]);
            }
        }
    }
    let names: Vec<String> = bench.systems.iter().map(|system| system.name().to_owned()).collect();
    for (key, what, values) in [
        ("first_row", "from the creation of a branch to the first row; native: wake", firsts),
        ("wake", "from a stopped Postgres to the first row", wakes),
    ] {
        let ours = values[0].clone();
        let values = names.iter().cloned().zip(values).collect();
        bench.add(What { key, what, unit: "ms", better: Better::Less }, values);
        bench.report.add_absolute(key, &ours, &[50]);
    }
}
