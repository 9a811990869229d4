# What there is to type; `make` alone lists it. Everything is installed into .venv and nowhere else.
# Another Python than python3: make test PYTHON=python3.13

PYTHON ?= python3
HOST := 127.0.0.1
SECONDS := 600
PORT := 8888

VENV := .venv
BIN := $(VENV)/bin

# Tests also wait, so there are more processes than cores; not many more, as each takes some seconds to start. Those
# that measure time or memory are marked "alone" and follow by themselves.
PYTEST = $(BIN)/python -m pytest --quiet
PARALLEL = -n $(shell expr 2 \* $$(getconf _NPROCESSORS_ONLN)) --dist worksteal -m "not alone"
EVERYTHING = --all --engines=all
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check

# The compiled core is built in this checkout, where it can be. With IOSTREAMSRV_PURE=1 it is neither built nor run.
CORE := $(if $(IOSTREAMSRV_PURE),,$(VENV)/.has-core)
BUILD_CORE = $(BIN)/python setup.py --quiet build_ext --inplace

# Runs a command on a compiled core whose memory accesses are checked. However it ends, no such core stays here: it would
# run at half the speed, and only under LD_PRELOAD.
define with_checked_core
@$(MAKE) --no-print-directory pure
trap '$(MAKE) --no-print-directory pure >&2' EXIT; \
	CFLAGS="-O1 -g -w -fsanitize=address" IOSTREAMSRV_BUILD=compiled $(BUILD_CORE) && \
	export LD_PRELOAD=$$(cc -print-file-name=libasan.so) ASAN_OPTIONS=detect_leaks=0 PYTHONMALLOC=malloc && \
	IOSTREAMSRV_BUILD=compiled $(1); ended=$$?; unset LD_PRELOAD; exit $$ended
endef

# Some shells set it. Without bytecode each process that runs tests compiles all of them again: 12 s, many times over.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help run install test test-all test-memory fuzz release-check conformance simulate compiled pure bench instructions faults-peers operations dropin dropin-figures style types coverage docs clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\): .*## /  make \1\t/p' Makefile | expand -t 24

run: $(VENV)/.has-package $(CORE) ## start the echo server on 127.0.0.1:8888 (or HOST=... PORT=...)
	@echo "An echo server. Talk to it from another terminal: nc $(HOST) $(PORT)    Ctrl-C ends it."
	@$(BIN)/python examples/echo.py --host $(HOST) --port $(PORT)

install: $(VENV)/.has-tests $(VENV)/.has-tools $(VENV)/.has-docs $(CORE) ## install all that the other targets need into .venv
	$(PYTEST) --collect-only $(EVERYTHING) tests >/dev/null

test: $(VENV)/.has-tests $(CORE) ## the first tier of tests, in about two minutes
	$(PYTEST) $(PARALLEL) tests
	$(PYTEST) -m alone tests

test-all: $(VENV)/.has-tests $(CORE) ## all tests, on every engine, with ten times as many generated cases
	IOSTREAMSRV_ALL=1 $(PYTEST) $(EVERYTHING) $(PARALLEL) tests
	IOSTREAMSRV_ALL=1 $(PYTEST) $(EVERYTHING) -m alone tests

test-memory: $(VENV)/.has-tests $(VENV)/.has-build ## the tests of streams on a compiled core whose memory accesses are checked (AddressSanitizer)
	$(call with_checked_core,IOSTREAMSRV_ALL=1 $(PYTEST) $(PARALLEL) tests/sansio tests/streams)

fuzz: $(VENV)/.has-tests $(VENV)/.has-build ## generated cases on such a core, others each time, for 10 minutes (or SECONDS=...)
	$(call with_checked_core,$(BIN)/python -m tests.fuzz --seconds $(SECONDS))

release-check: ## all checks of .ci/run, with test-all on every Python that is found
	.ci/run release-check

conformance: $(VENV)/.has-tests $(CORE) ## Tornado's own tests of streams and servers, run on ours
	$(BIN)/python -m tests.conformance
	$(BIN)/python -m tests.conformance --our-defaults

simulate: $(VENV)/.has-tests $(CORE) ## servers, clients and faults drawn at random, in a simulation, for 10 minutes on two cores
	$(BIN)/python -m tests.simulation.swarm --seconds 600 --jobs 2 --first $$(date +%s)000

bench: $(VENV)/.has-bench $(CORE) ## measure against Tornado and asyncio, and write the tables and charts in docs; REPEAT=3: three times
	$(BIN)/python -m benchmarks --write-docs --repeat $(or $(REPEAT),1)

instructions: $(VENV)/.has-tests $(CORE) ## count the compiled core's instructions per operation; 5 % off what is expected fails
	$(BIN)/python -m benchmarks.instructions

faults-peers: $(VENV)/.has-tests $(CORE) ## probe Tornado and asyncio as well, and write the table in docs
	$(BIN)/python -m tests.faults --write-docs

operations: $(VENV)/.has-tests $(CORE) ## reload, upgrade, kill and stop services under load, ours and gunicorn's and uvicorn's, and write the table in docs
	$(BIN)/python -m tests.operations --write-docs

dropin: $(VENV)/.has-tests $(CORE) ## run public projects on Tornado and on ours, and write the table in docs; ONLY=thrift: that one only
	$(BIN)/python -m tests.dropin $(or $(ONLY),--write-docs)

dropin-figures: $(VENV)/.has-tests $(CORE) ## measure public projects on Tornado and on ours, and write the table in docs
	$(BIN)/python -m tests.dropin.measure --write-docs

style: $(VENV)/.has-tools ## format and lint, checked only
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m ruff check .

types: $(VENV)/.has-tools ## mypy
	$(BIN)/python -m mypy

compiled: $(VENV)/.has-build ## build the compiled core in this checkout, or say why it can't be built
	IOSTREAMSRV_BUILD=compiled $(BUILD_CORE)
	@touch $(VENV)/.has-core

pure: ## remove the compiled core; IOSTREAMSRV_PURE=1 make test runs without it, too
	rm -rf build/cython iostreamsrv/compiled*.json $(VENV)/.has-core
	find iostreamsrv -name '*.so' -delete

coverage: $(VENV)/.has-tests ## 100 % of sansio, by its own tests
	IOSTREAMSRV_PURE=1 $(BIN)/python -m coverage run --branch --source=iostreamsrv/sansio -m pytest tests/sansio
	$(BIN)/python -m coverage report --fail-under=100

docs: $(VENV)/.has-docs ## the pages, into build/docs; a warning fails
	IOSTREAMSRV_PURE=1 $(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going --fresh-env docs build/docs
	@echo "open build/docs/index.html"

clean: pure ## remove the venv and all that was made
	rm -rf $(VENV) .venv-* .dropin .operations .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamp files, made anew when pyproject.toml has changed. The package is installed "editable": its code needs no new
# install. pip builds nothing of it, which it would do from the start each time.
$(VENV)/.has-package: EXTRAS :=
$(VENV)/.has-tests: EXTRAS := [test]
$(VENV)/.has-bench: EXTRAS := [test,bench]
$(VENV)/.has-tools: EXTRAS := [test,dev]
$(VENV)/.has-docs: EXTRAS := [docs]
$(VENV)/.has-package $(VENV)/.has-tests $(VENV)/.has-bench $(VENV)/.has-tools $(VENV)/.has-docs: pyproject.toml | $(VENV)/.has-build
	IOSTREAMSRV_BUILD=pure $(PIP) --no-build-isolation --editable ".$(EXTRAS)"
	@touch $@

# Only modules whose sources have changed are built. Where they can't be, one line says so, once.
$(VENV)/.has-core: setup.py $(shell find iostreamsrv -name '*.py' -o -name '*.pyx' -o -name '*.pxd') | $(VENV)/.has-build
	$(BUILD_CORE)
	@touch $@

$(VENV)/.has-build: | $(VENV)/.made
	$(PIP) "Cython>=3.1" "setuptools>=77,<80.9"
	@touch $@

$(VENV)/.made:
	$(if $(obstacle),$(error $(obstacle)))
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

obstacle = $(shell if command -v $(PYTHON) >/dev/null; then $(PYTHON) .ci/find_obstacle.py $(PYTHON) 2>&1; \
	else echo "there is no $(PYTHON): sudo apt-get install python3 python3-venv"; fi)
