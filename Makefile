# make demo         build, load a real database, branch it, break the branch, reset it; leaves the server running
# make demo ONCE=1  the same, but stops at the end and leaves nothing; fails if any step did not do what it says
# make stop         stop the server that `make demo` left running
# make test         everything that CI runs: formatting, lints, docs, all tests, fuzzing
# make fuzz         fuzzes each target for MINUTES (10), guided by coverage
# make bench        latency, throughput and cold reads against native Postgres, reads of the store, ten thousand branches
# make churn        half an hour of load with branches coming and going and moments of the past visited
# make setup        install what is missing (Debian, Ubuntu); the other targets do it by themselves

.PHONY: demo stop test fuzz bench churn setup
.DEFAULT_GOAL := test
# Where rustup puts cargo, for shells that do not know it yet.
export PATH := $(PATH):$(HOME)/.cargo/bin

setup:
	@tests/scripts/setup.sh --lints

demo:
	@tests/scripts/setup.sh
	@cargo build --release --quiet --workspace --bins
	@tests/scripts/demo.sh $(if $(filter-out 0,$(ONCE)),--once)

stop:
	@tests/scripts/demo.sh --stop

test: setup
	@tests/scripts/check.sh

fuzz: setup
	@tests/scripts/fuzz.sh $$(($(or $(MINUTES),10) * 60))

bench: setup
	cargo build --release --workspace
	cargo bench --bench latency
	cargo bench --bench pgbench
	cargo bench --bench scale
	cargo bench --bench storage
	cargo bench --bench cold

churn: setup
	cargo build --release --workspace
	cargo bench --bench churn
