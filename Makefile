# Every target works in a fresh clone: it makes .venv once, builds the native core again only when its sources changed,
# and says in one line what it is doing. `make PYTHON=python3.12 …` picks the interpreter of a new .venv.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
LOCK   := requirements-ci.lock
SHELL  := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help dev demo test test-native test-python test-user bench lint format sanitize wheel lock clean

# Found in the environment, they would make the build and the tests see another Python than .venv's.
unexport PYTHONHOME PYTHONPATH VIRTUAL_ENV MAKEFLAGS
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1

SAY  := @printf '==> %s\n'
PIP  := $(BIN)/python -m pip install --quiet --constraint $(LOCK)
# Two `make` at once in one clone: the second waits for the first one's environment instead of breaking it.
ALONE := @mkdir -p build && flock build/.lock

NATIVE_SOURCES := $(wildcard native/*.cpp native/*.hpp)
NATIVE_TESTS   := $(wildcard tests/native/*.cpp tests/native/*.hpp)

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

# --- the environment: one stamp file per step ---------------------------------------------------------------------

$(VENV)/.made: $(LOCK)
	$(SAY) "environment: making $(VENV) with $(PYTHON) and installing the build tools (once)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Bequest needs Python 3.11 or newer: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@command -v c++ >/dev/null || { echo "No C++ compiler found: install g++ 11 or newer (Debian: apt-get install g++)"; exit 1; }
	$(ALONE) $(PYTHON) -m venv $(VENV) || { echo "No venv module: install it (Debian: apt-get install python3-venv)"; exit 1; }
	$(ALONE) $(PIP) scikit-build-core nanobind cmake ninja build
	@touch $@

# Editable: Python changes count at once; only a change of the native core or of the packaging comes through here.
$(VENV)/.installed: $(VENV)/.made $(NATIVE_SOURCES) CMakeLists.txt pyproject.toml
	$(SAY) "build: compiling the native core, installing bequest into $(VENV)"
	$(ALONE) $(PIP) --no-build-isolation --editable '.[test,lint]'
	@touch $@

$(VENV)/.bench: $(VENV)/.installed
	$(SAY) "environment: installing the peers to measure against (once)"
	$(ALONE) $(PIP) --no-build-isolation --editable '.[bench]'
	@touch $@

dev: $(VENV)/.installed ## .venv with an editable install, for work on Bequest
	$(SAY) "ready: $(BIN)/bequest and $(BIN)/python"

# --- what a user wants to see ---------------------------------------------------------------------------------------

demo: $(VENV)/.installed ## MapReduce over real text, whose data changes hands without a copy
	$(SAY) "demo: bequest demo"
	@$(BIN)/bequest demo $(ARGS)

bench: $(VENV)/.bench ## Bequest beside its peers, in one run
	$(SAY) "bench: bequest bench"
	@$(BIN)/bequest bench $(ARGS)

wheel: $(VENV)/.installed ## the source distribution and the wheel, in dist/
	$(SAY) "wheel: python -m build"
	@$(BIN)/python -m build --no-isolation --outdir dist .

clean: ## everything that make has made
	$(SAY) "clean: removing build, dist, caches and $(VENV)"
	@rm -rf build dist $(VENV) .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	@find src tests examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
