#!/usr/bin/env bash
# A wrapper of rustc (RUSTC_WRAPPER) that has the crates of this repository count their coverage for
# libFuzzer. Those of others are built as ever: what they branch on would lead the search away from
# what is to be found.
set -euo pipefail
rustc=$1
shift
ours=no
for ((nth = 1; nth < $#; nth++)); do
    [[ ${!nth} == --crate-name ]] || continue
    following=$((nth + 1))
    case ${!following} in pageserver | proxy | api) ours=yes ;; esac
    break
done
# The targets themselves, which have no name that could be told from another's.
[[ ${CARGO_PKG_NAME:-} == coppice-fuzz ]] && ours=yes
if [[ $ours == yes ]]; then
    set -- "$@" --cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
        -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
        -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1
fi
exec "$rustc" "$@"
