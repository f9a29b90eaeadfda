#!/usr/bin/env bash
# All checks, in the order of their cost; stops at the first that fails. SIMULATION_SECONDS sets how
# long fresh seeds of the simulation run (120).
set -euo pipefail
cd "$(dirname "$0")/../.."

# The fuzz targets are a workspace of their own; with one target directory nothing is built twice.
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$PWD/target}"
export CARGO_TERM_PROGRESS_WHEN=never
fuzz=(--manifest-path fuzz/Cargo.toml)

stage() {
    local name=$1 began=$EPOCHREALTIME
    shift
    printf '==> %s\n' "$name"
    "$@" || {
        printf '==> %s: FAILED (%s)\n' "$name" "$*" >&2
        exit 1
    }
    local us=$((${EPOCHREALTIME/./} - ${began/./}))
    printf '==> %s: ok, %d.%d s\n' "$name" $((us / 1000000)) $((us / 100000 % 10))
}

format() { cargo fmt --all --check && cargo fmt "${fuzz[@]}" --check; }
lint() {
    cargo clippy --workspace --all-targets -- -D warnings &&
        cargo clippy "${fuzz[@]}" --all-targets -- -D warnings
}
document() { RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps; }

# The simulation must find each deliberate defect within so many runs. The seeds count from 1, so
# the run that finds a defect is the same on every machine, until the store or the simulation
# changes. Each number is at least four times that of the run that found the defect when the number
# was chosen.
sabotage() {
    local pair defect runs
    cargo test --release --quiet --features sabotage --test simulation --no-run || return 1
    for pair in lane-sync=100 directory-sync=100 layer-sync=100 page-checksum=100 fork-sync=100 \
        sync-target=250 lane-loss=250 catalog-sync=100 catalog-witness=3000 recovery-sync=100; do
        defect=${pair%=*} runs=${pair#*=}
        printf '    %s: ' "$defect"
        COPPICE_SABOTAGE=$defect cargo test --release --quiet --features sabotage \
            --test simulation -- --runs "$runs" --expect-failure | tail -n 1 || return 1
    done
}

stage 'format' format
stage 'clippy' lint
stage 'rustdoc' document
# Tests start the programs of target/debug.
stage 'build' cargo build --workspace
stage 'tests' cargo test --workspace
stage 'clients' tests/clients/run.sh --ci
# The fixed seeds have run with the tests. Fresh ones run in a release build, which does five times
# as many. That build is the one of the next stage: without COPPICE_SABOTAGE it has no defect.
stage 'simulation' cargo test --release --quiet --features sabotage --test simulation -- \
    --seconds "${SIMULATION_SECONDS:-120}"
stage 'sabotage' sabotage
stage 'fuzz' tests/scripts/fuzz.sh --short
echo '==> all checks passed'
