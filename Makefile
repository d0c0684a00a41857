# Everything goes through .venv, which is set up on first use and kept in step with the locks:
# RUNTIME is what the worker needs, wheels only; TOOLS adds what tests and checks need (a C compiler too).
PYTHON ?= python3
BIN := .venv/bin
RUNTIME := .venv/.runtime
TOOLS := .venv/.tools
NATIVE := .venv/.native
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# It may be there without being on the PATH.
CARGO := $(firstword $(shell command -v cargo 2>/dev/null) $(wildcard $(HOME)/.cargo/bin/cargo))
RUST := cd native && PATH="$(CURDIR)/$(BIN):$(patsubst %/,%,$(dir $(CARGO))):$$PATH"
COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-emit-find-links --no-annotate --no-header pyproject.toml --extra worker

.DEFAULT_GOAL := help
.PHONY: help venv demo test simulate-faults outages lint format lock wheels bench evidence clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(NATIVE) ## set up .venv (PYTHON=python3.13 picks another interpreter, after make clean)

demo: $(RUNTIME) ## a rollout from start to end (SCENARIO=healthy|quality-gate|rate-limit-storm|…, ARGS=--help lists them)
	@$(BIN)/tidegate demo $(if $(SCENARIO),--scenario $(SCENARIO)) $(ARGS)

test: $(NATIVE) ## all tests (ARGS="-k ramp" picks some)
ifdef ARGS
	@$(BIN)/pytest $(ARGS)
else
	@# Tests on a real Kafka mostly wait for it: the others run beside them, and report first.
	@log=$$(mktemp); $(BIN)/pytest tests/integration >$$log 2>&1 & kafka=$$!; \
		trap 'kill $$kafka; rm -f $$log; exit 130' INT TERM; \
		$(BIN)/pytest --ignore=tests/integration; rest=$$?; \
		wait $$kafka; real=$$?; cat $$log; rm -f $$log; \
		exit $$((rest ? rest : real))
endif

simulate-faults: $(NATIVE) ## deployments with faults by seed (SEEDS=10000, FIRST=0)
	@$(BIN)/python -m tests.faults $(or $(SEEDS),10000) $(or $(FIRST),0)

outages: $(NATIVE) ## real faults on a real Kafka, about 30 minutes (ARGS="'broker restarted'" picks one)
	@$(BIN)/python -m tests.integration.outages $(ARGS)

lint: $(TOOLS) ## style, types, import rules, generated schemas; where cargo is there, the native decoder's own
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo --no-cache
	@$(BIN)/python -m tidegate.schemas.generate --check
ifneq ($(CARGO),)
	@$(RUST); if cargo fmt --version >/dev/null 2>&1; then cargo fmt --all --check; else echo "no rustfmt here"; fi
	@$(RUST); if ! cargo clippy --version >/dev/null 2>&1; then echo "no clippy here"; \
		else cargo clippy --quiet --locked --workspace --all-targets -- -D warnings; fi
	@$(RUST); said=$$(cargo test --quiet --locked --package tidegate-columns 2>&1) || { echo "$$said"; exit 1; }
endif

format: $(TOOLS) ## rewrite the source in the project's style
	@$(BIN)/ruff check --fix --quiet
	@$(BIN)/ruff format --quiet
ifneq ($(CARGO),)
	@$(RUST) cargo fmt --all
endif

lock: $(TOOLS) ## renew the locks after a change to pyproject.toml (ARGS=--upgrade for newer versions)
	@$(PIP) uv
	@$(COMPILE) $(ARGS) --group dev --output-file requirements.lock
	@$(COMPILE) --group build --constraint requirements.lock --output-file requirements-runtime.lock

wheels: $(TOOLS) ## dist/: the wheel, which is pure Python, and that of the native decoder for this platform (needs cargo)
	@$(BIN)/python -m hatchling build -t wheel -d dist
	@$(RUST) maturin build --quiet --release --locked --out ../dist

bench: $(NATIVE) ## throughput of the worker on a real Kafka (ARGS=…)
	@$(BIN)/python -m bench $(ARGS)

evidence: $(TOOLS) ## docs/evidence.md: what sequential evidence costs and gains beside others, about 30 minutes (ARGS="--runs 20")
	@$(BIN)/python -m bench.evidence $(ARGS)

clean: ## remove .venv and what the tools left
	@rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist native/target
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# While pip works the stamp stands aside: a setup that breaks off leaves none, and the next one
# starts from nothing.
$(RUNTIME): requirements-runtime.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "Tidegate needs Python 3.11 or newer, and $(PYTHON) is" \
			"$$($(PYTHON) --version 2>/dev/null || echo not there)." \
			"Name another: make PYTHON=python3.13 $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "Setting up .venv"
	@if [ -f $@ ]; then rm $@; else $(PYTHON) -m venv --clear .venv; fi
	@$(PIP) --require-hashes -r requirements-runtime.lock
	@$(PIP) --no-deps --no-build-isolation -e .
	@touch $@

$(TOOLS): requirements.lock $(RUNTIME)
	@echo "Adding the tools for tests and checks"
	@mv $(RUNTIME) $(RUNTIME).aside
	@$(PIP) --require-hashes -r requirements.lock
	@mv $(RUNTIME).aside $(RUNTIME)
	@touch $@

# Tidegate runs without it, to the same bytes: only CI insists.
$(NATIVE): $(TOOLS) native/Cargo.lock $(wildcard native/*.toml native/core/*.toml native/src/*.rs native/core/src/*.rs)
ifeq ($(CARGO),)
	@echo "No cargo here, so no native decoder: events are decoded in Python, to the same result but slower"
	@test -z "$$CI"
else
	@echo "Building the native decoder"
	@if $(RUST) $(CURDIR)/$(PIP) --no-deps --no-build-isolation --force-reinstall . ; then touch $(CURDIR)/$@; \
		else echo "The native decoder was not built (why: above); events are decoded in Python"; test -z "$$CI"; fi
endif
