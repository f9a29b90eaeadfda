# make demo           build, load a real database, branch it, break the branch, reset it; leaves the
#                     server running
# make demo ONCE=1    the same, but stops at the end and leaves nothing; fails if any step did not
#                     do what it says
# make stop           stop the server that `make demo` left running
# make test           everything that CI runs: format, lints, docs, all tests, simulation, fuzzing
# make test-versions  the server's main job on the versions of Postgres, 14 to 18, that this machine
#                     does not have
# make clients        drivers and frameworks of six languages on the URLs that the server prints;
#                     installs them. NAMES="node-pg jdbc" for some
# make simulate       the page store on a simulated disk, against a model: MINUTES=n goes on for so
#                     long, SEED=n replays one run
# make rounds         200 rounds of a mixed load on real Postgres that end in a crash; ROUNDS=n for
#                     more or fewer
# make fuzz           fuzzes each target for MINUTES (10), guided by coverage
# make filesystem     a million random operations on the mount and on a local directory;
#                     OPERATIONS=n for more or fewer
# make soak           5,000 branches created, woken, queried and deleted, and 500 woken in few
#                     places
# make bench          Postgres on a branch against the same on ext4, btrfs and XFS, the proxy
#                     against PgBouncer; 25 minutes, as root
# make bench-docs     tables and plots of docs/benchmarks.md from what `make bench` measured last
# make bench-parts    latency of branch operations, ten thousand branches, stalls, and the page
#                     store and the proxy in parts
# make churn          half an hour of load with branches that come and go, and visits to the past
# make setup          install what is missing (Debian, Ubuntu); the other targets do so themselves

.PHONY: demo stop test test-versions clients simulate rounds fuzz filesystem soak bench \
	bench-docs bench-parts churn setup
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

test-versions: setup
	@tests/scripts/versions.sh

clients:
	@tests/scripts/setup.sh --clients
	@cargo build --quiet --workspace --bins
	@tests/clients/run.sh $(NAMES)

fuzz: setup
	@tests/scripts/fuzz.sh $$(($(or $(MINUTES),10) * 60))

bench:
	@tests/scripts/setup.sh --bench
	cargo build --release --workspace
	cargo bench --bench compare

bench-docs:
	cargo bench --quiet --bench compare -- --docs

bench-parts: setup
	cargo build --release --workspace
	cargo bench --bench latency
	cargo bench --bench scale
	cargo bench --bench stalls
	cargo bench --bench storage
	cargo bench --bench proxy

churn: setup
	cargo build --release --workspace
	cargo bench --bench churn

simulate: setup
	cargo test --release --quiet --test simulation -- $(if $(SEED),--seed $(SEED),--seconds $(shell echo $$(($(or $(MINUTES),10) * 60))))

rounds: setup
	cargo build --release --workspace
	COPPICE_TEST_ROUNDS=$(or $(ROUNDS),200) cargo test --release --test rounds -- --nocapture

filesystem: setup
	COPPICE_TEST_SEED=$(shell date +%s) COPPICE_TEST_OPERATIONS=$(or $(OPERATIONS),1000000) \
		cargo test --release --test filesystem random_operations -- --nocapture

soak: setup
	cargo build --release --workspace
	COPPICE_ROUNDS=5000 COPPICE_BRANCHES=500 cargo test --release --test bounds -- --nocapture
