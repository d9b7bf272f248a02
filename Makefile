# Needs Python >= 3.10 and make; everything else is installed into .venv.
PYTHON ?= python3
BIN := .venv/bin
export HF_HUB_OFFLINE ?= 1

.DEFAULT_GOAL := help
.PHONY: help install quickstart test test-upstream benchmark gpu-check check sanitize clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

# Runs again when pyproject.toml changes, so that new dependencies are installed.
.venv/installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e .[dev]
	touch $@

install: .venv/installed  ## create .venv and install the package and the tests' dependencies

quickstart: .venv/installed  ## teacher, student alone and distilled student on generated scenes (about 2 minutes on 2 idle cores)
	$(BIN)/afdcd quickstart

test: .venv/installed  ## run the whole test suite (offline, CPU)
	$(BIN)/python -m pytest -q -n 2

test-upstream: .venv/installed  ## transformers' own model and image-processor tests on ours (fetches their source)
	$(BIN)/python scripts/upstream_tests.py

benchmark: .venv/installed  ## speed and memory of contrast, training step and metric (about 8 minutes on 2 idle cores)
	$(BIN)/python scripts/benchmark.py --output runs/benchmark-$$(date +%Y%m%d-%H%M%S).json

check: .venv/installed  ## lint, formatting, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Without .venv it uses $(PYTHON), since GPU machines often come with PyTorch installed.
gpu-check:  ## everything that needs a GPU, in under 8 minutes; writes a JSON and a Markdown file to runs/
	$(or $(wildcard $(BIN)/python),$(PYTHON)) scripts/gpu_check.py --output runs/gpu-check-$$(date +%Y%m%d-%H%M%S).json

# Python itself is not sanitized, so the sanitizer runtimes must be preloaded.
sanitize: .venv/installed  ## the C kernel's tests under the address and undefined-behaviour sanitizers (gcc, about 3 minutes)
	CC="gcc -fsanitize=address,undefined -fno-sanitize-recover=all -g" ASAN_OPTIONS=detect_leaks=0 \
	XDG_CACHE_HOME=$$(mktemp -d) \
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libstdc++.so)" \
	$(BIN)/python -m pytest -q -s tests/ops/test_backends.py \
	-k "(native and (equal or nan or strides or float64)) or instruction_sets"

clean:  ## remove the environment and build artefacts (runs/ is kept)
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache
