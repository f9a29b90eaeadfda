#!/usr/bin/env bash
# All checks, in the order of their cost; stops at the first that fails. FUZZ_SECONDS sets the time
# of each fuzz target.
set -euo pipefail
cd "$(dirname "$0")/../.."

# The fuzz targets are a workspace of their own; with one target directory nothing is looked at
# twice.
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
    cargo clippy --workspace --all-targets -- -D warnings && cargo clippy "${fuzz[@]}" --all-targets -- -D warnings
}
document() { RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps; }

# The simulation must find each deliberate defect within a minute.
sabotage() {
    local defect
    cargo test --release --quiet --features sabotage --test simulation --no-run || return 1
    for defect in lane-sync directory-sync layer-sync page-checksum fork-sync sync-target lane-loss catalog-sync catalog-witness \
        recovery-sync; do
        printf '    %s: ' "$defect"
        COPPICE_SABOTAGE=$defect cargo test --release --quiet --features sabotage --test simulation -- \
            --seconds 60 --expect-failure | tail -n 1 || return 1
    done
}

stage 'format' format
stage 'clippy' lint
stage 'rustdoc' document
# Tests start the programs of target/debug.
stage 'build' cargo build --workspace
stage 'tests' cargo test --workspace
# The fixed seeds have run with the tests; fresh ones in a release build, which does five times as
# many, and the same one as below: without COPPICE_SABOTAGE it has no defect.
stage 'simulation' cargo test --release --quiet --features sabotage --test simulation -- --seconds "${SIMULATION_SECONDS:-120}"
stage 'sabotage' sabotage
stage 'fuzz' tests/scripts/fuzz.sh "${FUZZ_SECONDS:-5}"
echo '==> all checks passed'
