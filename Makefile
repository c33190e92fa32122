# Thin doors to the real commands. Each target sets up .venv itself when it must; once set up,
# that takes no time. README.md says what to expect of each.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

DATA ?= movielens-100k
NAME ?= training
OPTIONS ?=
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
TORCH := torch==2.13.0
# pip's bars for whoever watches; no thousand lines in a log.
QUIET = $$(test -t 1 || echo --quiet)
OLD_PYTHON := recsys needs Python 3.11, 3.12 or 3.13; none was found (looked for python3, python3.13, python3.12, python3.11). Install one, or say which: make PYTHON=/path/to/python ...
# The first interpreter that is there and fits; pyenv's shims exist but fail, so each is run.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && { echo $$p; break; }; done)

.PHONY: help demo test check bench lock clean

help:  ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 10

demo: .venv/.runtime  ## train, evaluate, export and verify on DATA=movielens-100k or DATA=synthetic
ifeq ($(DATA),synthetic)
	@$(BIN)/recsys fetch synthetic
	@$(BIN)/recsys run examples/synthetic_din.yaml $(OPTIONS)
else ifeq ($(DATA),movielens-100k)
	@$(BIN)/recsys fetch movielens-100k
	@$(BIN)/recsys run examples/movielens_din.yaml $(OPTIONS)
else
	@echo "make demo knows DATA=movielens-100k and DATA=synthetic, not $(DATA)"; exit 2
endif

test: .venv/.dev  ## run the tests; OPTIONS="-k name" for some of them
	@$(BIN)/pytest $(OPTIONS)

check: .venv/.dev  ## formatting, lint, types
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

bench: .venv/.dev  ## measure: NAME=features|training|quality|..., OPTIONS=--quick
	@$(BIN)/python -m benchmarks.$(NAME) $(OPTIONS)

lock:  ## renew requirements/*.txt from what pyproject.toml asks for and pip resolves today
	rm -rf build/lock
	$(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install $(TORCH)
	build/lock/bin/python -m pip install '.[cuda,serve,redis]' --group dev
	build/lock/bin/python requirements/lock.py

clean:  ## remove the environment and caches; data, store and runs stay
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis .import_linter_cache

# torch comes first and alone: pip picks the build this machine can get, and the lock that fits
# follows from what that build then finds. Everything else is exact, so nothing can be resolved
# into a CUDA build beside a CPU build.
.venv/.runtime: requirements/cpu.txt requirements/cuda.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "$(OLD_PYTHON)" >&2; exit 1; }
	@echo "Setting up .venv with $$($(PYTHON) --version) (once; some minutes)"
	@$(PYTHON) -m venv .venv
	@echo "Installing $(TORCH)"
	@$(PIP) install $(QUIET) $(TORCH)
	@device=$$($(BIN)/python -W ignore -c 'import torch; print("cuda" if torch.cuda.is_available() else "cpu")'); \
	echo "Installing requirements/$$device.txt: torch finds $$([ $$device = cuda ] && echo a CUDA device || echo no CUDA device)"; \
	$(PIP) install $(QUIET) --no-deps -r requirements/$$device.txt
	@$(PIP) install --quiet --no-deps -e .
	@touch $@

.venv/.dev: .venv/.runtime requirements/dev.txt
	@echo "Installing requirements/dev.txt"
	@$(PIP) install --quiet --no-deps -r requirements/dev.txt
	@touch $@
