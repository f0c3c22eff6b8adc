# One environment, .venv, serves every target. It is built from setup.py and constraints.txt and rebuilt when
# either changes; the development tools are small beside JAX, so they are always in it.

# The first interpreter that runs and is supported (a name may be on PATH and still not run).
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
  $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' >/dev/null 2>&1 \
  && echo $$p && break; done)
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install -q --no-compile -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help install install-beam install-studio demo test test-slow test-plan lint format clean

help:  ## print this list
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "  make %-16s%s\n", $$1, $$2}'

install: .venv/.installed  ## build .venv with the pinned dependencies (about a minute, once)

install-studio: .venv/.installed-studio  ## add the dependencies of the extra "studio"

install-beam: .venv/.installed-beam  ## add Apache Beam, which the slow tests run on

demo: .venv/.installed  ## train a small model on this machine's CPU and write a page of samples to out/demo
	@$(BIN)/sora demo --out out/demo --json

test: .venv/.installed  ## run the tests, but not the slow ones
	@$(BIN)/python -m pytest -q -rs -m "not slow" -n auto --maxprocesses 8 --dist loadfile tests

test-slow: .venv/.installed-beam  ## run the slow tests only
	@$(BIN)/python -m pytest -q -rs -m slow tests

test-plan: .venv-plan/.installed  ## compile pods' train steps and compare with tests/plan/golden.json (half an hour)
	@.venv-plan/bin/python -m pytest -q -rs -m slow tests/plan

lint: .venv/.installed  ## check style, layout and types; changes nothing
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: .venv/.installed  ## mend what lint can mend
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean:  ## remove .venv, caches and out/
	rm -rf .venv .venv-plan out build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.installed: setup.py constraints.txt
	@test -n "$(PYTHON)" || { echo "sora_jax needs Python 3.11, 3.12 or 3.13, and none was found:" \
	  "install one, or name it with make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@echo "building .venv with $(PYTHON) (about a minute, once)" >&2
	@$(PIP) --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	@$(INSTALL) -e '.[dev]' >&2
	@touch $@

# JAX takes libtpu for a sign of a TPU, so it has an environment of its own.
.venv-plan/.installed: setup.py constraints.txt .venv/.installed
	@$(BIN)/python -m venv --clear .venv-plan
	@.venv-plan/bin/pip --disable-pip-version-check install -q --no-compile -c constraints.txt -e '.[dev,plan]' >&2
	@touch $@

.venv/.installed-studio: .venv/.installed
	@$(INSTALL) -e '.[studio]' >&2
	@touch $@

.venv/.installed-beam: .venv/.installed
	@$(INSTALL) -e '.[beam]' >&2
	@touch $@
