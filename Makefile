# Everything starts here; CI calls the same targets. Nothing is installed outside $(VENV).
#   make test    venv, install, then formatting, lint, types, import contracts and tests
#   make demo    venv, install, then the whole pipeline of recipes/small.yaml into runs/small
#   make setup lint test-slow sanitize bench wheel clean
# PIP_ARGS goes to every pip install, for instance
#   make test PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"     (torch without CUDA)

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.PHONY: setup demo test test-slow lint sanitize bench wheel clean

VENV := .venv
BIN := $(VENV)/bin
PIP_ARGS ?=
JOBS ?= 2
# The first Python that is new enough; `make PYTHON=/path/to/python` overrides.
PYTHON ?= $(firstword $(foreach p,python3 python3.13 python3.12 python3.11,\
  $(shell $(p) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(p))))

NATIVE := CMakeLists.txt $(wildcard csrc/*.h csrc/*.cpp csrc/isa/*.h csrc/isa/*.cpp)
SOURCES := $(shell find src tests benchmarks -name '*.py' 2>/dev/null)
INSTALLED := $(VENV)/.installed
LINTED := $(VENV)/.linted

setup: $(INSTALLED)

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "mote needs Python 3.11 or newer: install it or run make PYTHON=/path/to/python" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(INSTALLED): pyproject.toml constraints.txt $(NATIVE) | $(BIN)/python
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	touch $@

lint: $(LINTED)

$(LINTED): $(INSTALLED) $(SOURCES)
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/mypy
	$(BIN)/lint-imports
	touch $@

test: $(LINTED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS)

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow --timeout 1800

demo: $(INSTALLED)
	$(BIN)/mote pipeline recipes/small.yaml --out runs/small

bench: $(INSTALLED)
	$(BIN)/python benchmarks/packed_order.py
	$(BIN)/python benchmarks/ternary_training.py --threads $(JOBS)

# The native library under AddressSanitizer and UndefinedBehaviorSanitizer, driven from C++.
sanitize: $(INSTALLED)
	$(BIN)/cmake -S . -B build/sanitize -DMOTE_SANITIZE=ON -DCMAKE_BUILD_TYPE=Debug
	$(BIN)/cmake --build build/sanitize --parallel $(JOBS)
	build/sanitize/native_driver

wheel: $(BIN)/python
	$(BIN)/python -m pip wheel --no-deps $(PIP_ARGS) -w dist .

clean:
	rm -rf $(VENV) build dist
