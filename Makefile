# The two commands: `make demo` runs the main job on a folder store, `make test` runs every check and test.
# Both install what the machine lacks first. Build caches lie outside the checkout.

SHELL := /bin/bash
RUST := $(shell sed -n 's/^channel = "\(.*\)"/\1/p' rust-toolchain.toml)

export ZENITH_CACHE := $(shell vendor/cache)
ifeq ($(ZENITH_CACHE),)
$(error no folder for what is built)
endif
export CARGO_TARGET_DIR ?= $(ZENITH_CACHE)/target-$(RUST)
export PG_BIN_DIR ?= /usr/lib/postgresql/15/bin

# Without a home that can be written to, Rust's own caches go there too.
ifneq ($(shell [ -w "$$HOME" ] && echo yes),yes)
export CARGO_HOME ?= $(ZENITH_CACHE)/cargo
ifeq ($(wildcard $(HOME)/.rustup),)
export RUSTUP_HOME ?= $(ZENITH_CACHE)/rustup
endif
endif
export PATH := $(if $(CARGO_HOME),$(CARGO_HOME)/bin:)$(HOME)/.cargo/bin:$(PATH)

# Whatever the umask of this shell: servers that run as another user must reach the commands.
CARGO := umask 022 && cargo

.NOTPARALLEL:
.PHONY: help setup setup-test setup-bench build commands demo test bench differential fuzz fuzz-sql fuzz-kills flips lint doc clean

help:
	@echo "make demo   the main job on a folder store: archive, lose a table, restore"
	@echo "make test   every check and every test"
	@echo "make differential   PostgreSQL's own suites, restored at many LSNs beside PostgreSQL's own recovery; RUN=name for one"
	@echo "make fuzz   libFuzzer over every decoder; TARGET=wal_record for one of them, SECONDS=60 for each"
	@echo "make fuzz-sql    random workloads beside PostgreSQL's own recovery; SEEDS=10 of them from FIRST=1 on"
	@echo "make fuzz-kills  commands killed at random moments, and two at once; KILLS=20, FIRST=1"
	@echo "make flips  10,000 random bits of a larger store flipped, every page read back"
	@echo "make bench  the commands beside pgBackRest; ROWS='archive base' for some of it, BENCH='--scale 200' for other data"
	@echo "make build  the commands, in $(CARGO_TARGET_DIR)/debug"
	@echo "make clean  removes what was built"

setup:
	@vendor/install

setup-bench:
	@vendor/install bench

setup-test:
	@vendor/install test

build: setup
	$(CARGO) build --locked --workspace

# Only the commands: the libraries of the tests would make a first build longer.
commands: setup
	$(CARGO) build --locked -p zenith-tools -p zenith-redo-worker -p zenith-compute-ext

demo: commands
	tests/demo/run $(CARGO_TARGET_DIR)/debug

test: setup-test lint doc build
	vendor/minio/start
	$(CARGO) test --locked --workspace
	DEMO_SCALE=1 DEMO_LOAD_SECONDS=1 tests/demo/run $(CARGO_TARGET_DIR)/debug

# An hour and 20 GB of disk: docs/differential.md.
RUN ?=
differential: setup-test build
	$(CARGO) test --locked --workspace --test differential -- --ignored --nocapture --test-threads=1 $(RUN)

TARGET ?= all
# The shell has a SECONDS of its own.
FUZZ_SECONDS := $(if $(filter command line,$(origin SECONDS)),$(SECONDS),60)
fuzz: setup
	tests/fuzz/run $(TARGET) $(FUZZ_SECONDS)

# tests/fuzz-sql/README.md
export FIRST ?= 1
export SEEDS ?= 10
export KILLS ?= 20
FUZZ_SQL := $(CARGO) test --locked --workspace --test fuzz-sql -- --ignored --nocapture --exact
fuzz-sql: setup-test build
	$(FUZZ_SQL) many_seeds_restore_as_postgresql_recovers

fuzz-kills: setup-test build
	$(FUZZ_SQL) many_kills_lose_nothing

# docs/edge-cases.md, "Damage": five minutes.
flips: setup-test build
	$(CARGO) test --locked --workspace --test random_flips -- --ignored --nocapture

# tests/bench/README.md
ROWS ?=
BENCH ?=
bench: setup-bench
	$(CARGO) build --locked --release -p zenith-bench -p zenith-tools -p zenith-redo-worker
	vendor/minio/start
	$(CARGO_TARGET_DIR)/release/zenith-bench $(ROWS) $(BENCH)

lint: setup
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings

doc: setup
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps --document-private-items

clean:
	rm -rf $(CARGO_TARGET_DIR) target
