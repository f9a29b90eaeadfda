#!/usr/bin/env bash
# Fuzzes targets with libFuzzer, guided by coverage, on stable Rust:
# fuzz.sh [SECONDS|--short [TARGET...]]. Each target runs for so long, or with --short for a fixed
# number of inputs, about five seconds of each target.
# Inputs worth keeping go to target/fuzz/corpus, where the next run goes on, and never to the kept
# corpus. An input that breaks a property goes to fuzz/artifacts, and `target/fuzz/fuzz/TARGET FILE`
# tries it again.
set -euo pipefail
cd "$(dirname "$0")/../.."

limit=${1:---short}
shift $(($# > 0 ? 1 : 0))
targets=("$@")
if [[ $# -eq 0 ]]; then
    for file in fuzz/fuzz_targets/*.rs; do
        targets+=("$(basename "$file" .rs)")
    done
fi

# Inputs of a short run.
declare -A inputs=([catalog]=35000 [http]=40000 [layer]=5000 [record]=400000 [startup]=60000)

# Apart from other builds, which it would undo otherwise.
built="${CARGO_TARGET_DIR:-$PWD/target}/fuzz"
RUSTC_WRAPPER="$PWD/tests/scripts/fuzz-rustc.sh" \
    cargo build --quiet --manifest-path fuzz/Cargo.toml --target-dir "$built" --profile fuzz --bins

for target in "${targets[@]}"; do
    found="$built/corpus/$target" artifacts="fuzz/artifacts/$target"
    log="$built/$target.log"
    mkdir -p "$found" "$artifacts"
    bound=-max_total_time=$limit
    if [[ $limit == --short ]]; then
        bound=-runs=${inputs[$target]:?add the target to the inputs of a short run}
    fi
    # Only an input that hangs takes 120 s, also on a busy machine.
    if ! "$built/fuzz/$target" "$bound" -timeout=120 -rss_limit_mb=1024 \
        -artifact_prefix="$artifacts/" -print_final_stats=1 "$found" "fuzz/corpus/$target" \
        >"$log" 2>&1; then
        tail -n 60 "$log" >&2
        printf '%s: broken; the whole output is in %s\n' "$target" "$log" >&2
        exit 1
    fi
    printf '%-8s %s\n' "$target" "$(sed -n 's/^#[0-9]*\tDONE *//p' "$log")"
done
