# The two commands: `make demo` runs the main job on a folder store, `make test` runs every check and test.
# Both install what the machine lacks first. Build caches lie outside the checkout.

SHELL := /bin/bash
RUST := $(shell sed -n 's/^channel = "\(.*\)"/\1/p' rust-toolchain.toml)

# Server processes run as another user than root and must reach the binaries, so root's cache is not below /root.
ZENITH_CACHE ?= $(shell if [ "$$(id -u)" -eq 0 ]; then echo /var/cache/zenith; else echo "$$HOME/.cache/zenith"; fi)
export ZENITH_CACHE
export CARGO_TARGET_DIR ?= $(ZENITH_CACHE)/target-$(RUST)
export PATH := $(HOME)/.cargo/bin:$(PATH)
export PG_BIN_DIR ?= /usr/lib/postgresql/15/bin

.PHONY: help setup build demo test lint doc clean

help:
	@echo "make demo   the main job on a folder store: archive, lose a table, restore"
	@echo "make test   every check and every test"
	@echo "make build  the commands, in $(CARGO_TARGET_DIR)/debug"
	@echo "make clean  removes what was built"

setup:
	@vendor/install

build: setup
	cargo build --locked --workspace

demo: build
	tests/demo/run $(CARGO_TARGET_DIR)/debug

test: lint doc build
	vendor/minio/start
	cargo test --locked --workspace
	DEMO_SCALE=1 DEMO_LOAD_SECONDS=1 tests/demo/run $(CARGO_TARGET_DIR)/debug

lint: setup
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings

doc: setup
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps --document-private-items

clean:
	rm -rf $(CARGO_TARGET_DIR) target
