#!/usr/bin/env bash
# Fuzzes each target for a time with libFuzzer, guided by coverage, on stable Rust: fuzz.sh [SECONDS
# [TARGET...]]. What it finds worth keeping goes to target/fuzz/corpus, where the next run goes on,
# and never to the kept corpus; an input that breaks a property goes to fuzz/artifacts, and
# `target/fuzz/fuzz/TARGET FILE` tries it again.
set -euo pipefail
cd "$(dirname "$0")/../.."

seconds=${1:-5}
shift $(($# > 0 ? 1 : 0))
targets=("$@")
if [[ $# -eq 0 ]]; then
    for file in fuzz/fuzz_targets/*.rs; do
        targets+=("$(basename "$file" .rs)")
    done
fi

# Apart from other builds, which it would undo otherwise.
built="${CARGO_TARGET_DIR:-$PWD/target}/fuzz"
RUSTC_WRAPPER="$PWD/tests/scripts/fuzz-rustc.sh" \
    cargo build --quiet --manifest-path fuzz/Cargo.toml --target-dir "$built" --profile fuzz --bins

for target in "${targets[@]}"; do
    found="$built/corpus/$target" artifacts="fuzz/artifacts/$target"
    log="$built/$target.log"
    mkdir -p "$found" "$artifacts"
    if ! "$built/fuzz/$target" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=1024 \
        -artifact_prefix="$artifacts/" -print_final_stats=1 "$found" "fuzz/corpus/$target" >"$log" 2>&1; then
        tail -n 60 "$log" >&2
        printf '%s: broken; the whole output is in %s\n' "$target" "$log" >&2
        exit 1
    fi
    printf '%-8s %s\n' "$target" "$(sed -n 's/^#[0-9]*\tDONE *//p' "$log")"
done
