# Needs Python >= 3.10 and make; everything else goes into .venv.
PYTHON ?= python3
BIN := .venv/bin
export HF_HUB_OFFLINE ?= 1

.DEFAULT_GOAL := help
.PHONY: help install quickstart test benchmark check clean

help:  ## show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 20

# The stamp is renewed when pyproject.toml changes, so that new dependencies are installed.
.venv/installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e .[dev]
	touch $@

install: .venv/installed  ## create .venv and install the package with its tests

quickstart: .venv/installed  ## teacher, student alone and distilled student on generated scenes (5 to 7 minutes on 2 cores)
	$(BIN)/afdcd quickstart

test: .venv/installed  ## run the whole test suite (offline, CPU)
	$(BIN)/python -m pytest -q -n 2

benchmark: .venv/installed  ## speed and memory of contrast, projector and training step (some 8 minutes on 2 quiet cores)
	$(BIN)/python scripts/benchmark.py --output runs/benchmark-$$(date +%Y%m%d-%H%M%S).json

check: .venv/installed  ## lint and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:  ## remove the environment and build leftovers (runs/ stays)
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache
