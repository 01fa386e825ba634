# Every target sets up what it needs by itself: make and Python 3.11 or newer are enough.
#
#   make demo     see it work, on the real SDKs, in about a minute
#   make test     the whole suite; of the long suites a seeded tenth
#   make soak     the long suites whole
#   make lint     ruff and mypy
#   make bench    what it costs, as a table and as bench.json
#   make clean    remove the environment and everything generated
#
# PYTHON=python3.12 chooses the interpreter, VENV=dir the environment, ARGS="..." goes to pytest, lava demo or the bench.
# WORKERS=N is how many tests `make test` runs at a time (3: many of them wait); 0 is for ARGS="-s" or "--pdb".

SHELL := /bin/sh
.SHELLFLAGS := -eu -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

VENV ?= .venv
BIN := $(VENV)/bin
OLDER := $(VENV)-older
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
UNPACKED := $(abspath $(VENV))/prometheus/usr/bin:$(abspath $(VENV))/pgbouncer/usr/sbin
ARGS ?=
WORKERS ?= 3
SET_UP = $(MAKE) --no-print-directory --jobs=2 $(VENV)/.telemetry $(VENV)/.pgbouncer $(OLDER)/.made

# The first interpreter that is new enough and can make an environment (Debian ships venv separately).
PYTHON ?= $(shell for candidate in python3 python3.13 python3.12 python3.11 python3.14 python; do \
	"$$candidate" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& { echo "$$candidate"; break; }; done)

.PHONY: help demo test soak lint bench clean

help:
	@sed -n '2,11s/^# \{0,1\}//p' Makefile

demo: $(VENV)/.demo
	@$(BIN)/lava demo $(ARGS)

test:
	@$(SET_UP)
	@PATH="$(UNPACKED):$$PATH" $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

soak:
	@$(SET_UP)
	@PATH="$(UNPACKED):$$PATH" LAVA_SOAK=1 $(BIN)/python -m pytest -n 2 --dist worksteal --timeout 7200 -m soak $(ARGS)

lint: $(VENV)/.lint
	@$(BIN)/ruff check src tests scripts integrations
	@$(BIN)/ruff format --check src tests scripts integrations
	@$(BIN)/mypy

bench: $(VENV)/.test
	@$(BIN)/python tests/bench $(ARGS)

clean:
	@rm -rf $(VENV) $(OLDER) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist bench.json
	@find src tests integrations -name __pycache__ -type d -prune -exec rm -rf {} +

# The environment, in three steps, so that the demo does not wait for what only the tests need.

$(VENV)/.made:
	@if [ -z "$(PYTHON)" ]; then \
		echo "Python 3.11 or newer with its venv module is needed (on Debian: apt install python3-venv)." >&2; exit 1; fi
	@[ -x $(BIN)/python ] || { echo "Setting up $(VENV) with $(PYTHON) ..." >&2; $(PYTHON) -m venv $(VENV); }
	@$(PIP) install 'pip>=25.1'
	@touch $@

$(VENV)/.demo: $(VENV)/.made pyproject.toml
	@echo "Installing lava-middleware and what the demo needs ..." >&2
	@$(PIP) install --editable '.[demo]'
	@touch $@

$(VENV)/.test: $(VENV)/.demo pyproject.toml
	@echo "Installing what the tests need ..." >&2
	@$(PIP) install --group test
	@touch $@

$(VENV)/.telemetry: $(VENV)/.test pyproject.toml
	@echo "Installing the instrumentations that the tests run beside ..." >&2
	@rm -rf $(VENV)/telemetry
	@$(PIP) install --no-warn-conflicts --group telemetry --target $(VENV)/telemetry
	@touch $@

# Prometheus is no Python package. Debian's is unpacked, not installed: no service starts, and nobody has to be root.
$(VENV)/.prometheus: $(VENV)/.made
	@if ! command -v promtool >/dev/null && command -v apt-get dpkg >/dev/null; then \
		mkdir -p $(VENV)/prometheus && cd $(VENV)/prometheus && get="timeout 60 apt-get -qq -o Acquire::Retries=0"; \
		{ $$get download prometheus || { $$get update && $$get download prometheus; }; } >apt.log 2>&1 \
		&& dpkg -x prometheus_*.deb . && rm prometheus_*.deb \
		|| echo "Debian's prometheus cannot be had: the tests that ask a real one are skipped." >&2; fi
	@touch $@

# Nor is PgBouncer; one after the other, for apt locks what both need. The libraries that only it needs are unpacked beside it: their names differ between releases.
$(VENV)/.pgbouncer: $(VENV)/.made $(VENV)/.prometheus
	@if ! PATH="$$PATH:/usr/sbin" command -v pgbouncer >/dev/null && command -v apt-get dpkg >/dev/null; then \
		mkdir -p $(VENV)/pgbouncer && cd $(VENV)/pgbouncer && get="timeout 60 apt-get -qq -o Acquire::Retries=0"; \
		needed() { apt-cache depends pgbouncer | sed -n 's/^ *Depends: \(lib\(c-ares\|cares\|event\)[^ ]*\)$$/\1/p'; }; \
		{ $$get download pgbouncer $$(needed) || { $$get update && $$get download pgbouncer $$(needed); }; } \
			>apt.log 2>&1 && for one in *.deb; do dpkg -x "$$one" .; done && rm ./*.deb \
		|| echo "Debian's pgbouncer cannot be had: the tests that go through a real one are skipped." >&2; fi
	@touch $@

# Beside it, older releases of SDKs, which a few tests drive. Its packages are installed by the first one's pip.
$(OLDER)/.made: $(VENV)/.made pyproject.toml
	@echo "Installing older SDKs into $(OLDER) ..." >&2
	@$(BIN)/python -m venv --without-pip $(OLDER)
	@$(PIP) --python $(OLDER)/bin/python install --no-compile --editable . --group older
	@touch $@

$(VENV)/.lint: $(VENV)/.test pyproject.toml
	@echo "Installing what the linters need ..." >&2
	@$(PIP) install --group lint
	@touch $@
