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

SHELL := /bin/sh
.SHELLFLAGS := -eu -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
ARGS ?=

# The first interpreter that is new enough and can make an environment (Debian ships venv separately).
PYTHON ?= $(shell for candidate in python3 python3.13 python3.12 python3.11 python3.14 python; do \
	"$$candidate" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& { echo "$$candidate"; break; }; done)

.PHONY: help demo test soak lint bench clean

help:
	@sed -n '2,10s/^# \{0,1\}//p' Makefile

demo: $(VENV)/.demo
	@$(BIN)/lava demo $(ARGS)

test: $(VENV)/.test
	@$(BIN)/python -m pytest $(ARGS)

soak: $(VENV)/.test
	@LAVA_SOAK=1 $(BIN)/python -m pytest --timeout 7200 -m soak $(ARGS)

lint: $(VENV)/.lint
	@$(BIN)/ruff check src tests scripts integrations
	@$(BIN)/ruff format --check src tests scripts integrations
	@$(BIN)/mypy

bench: $(VENV)/.test
	@$(BIN)/python tests/bench $(ARGS)

clean:
	@rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist bench.json
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

$(VENV)/.lint: $(VENV)/.test pyproject.toml
	@echo "Installing what the linters need ..." >&2
	@$(PIP) install --group lint
	@touch $@
