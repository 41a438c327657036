# Everything starts here; CI calls the same targets. Nothing is installed outside $(VENV).
#   make test    venv, install, then formatting, lint, types, import contracts and tests
#   make demo    venv, install, then the whole pipeline of recipes/small.yaml into runs/small
#   make setup lint test-slow test-export sanitize fuzz test-avx512-emulated test-neon bench bench-peers-setup wheel clean
# PIP_ARGS goes to every pip install, for instance
#   make test PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"     (torch without CUDA)

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.PHONY: setup demo test test-slow test-export lint sanitize fuzz test-avx512-emulated test-neon bench bench-peers-setup wheel clean

VENV := .venv
PEERS := .venv-peers
LLAMA := .venv-export
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

# What `mote export` writes, in the engines that it is for: llama.cpp, built in an environment of its own (about 15
# minutes the first time, on two cores), vision included. pip's cache of wheels knows neither the flags nor the CPU that
# one was built for.
test-export: $(INSTALLED) $(LLAMA)/.installed
	MOTE_LLAMA_PYTHON=$(LLAMA)/bin/python $(BIN)/python -m pytest -m export --timeout 1800

$(LLAMA)/.installed: tests/export/requirements.txt
	@test -n "$(PYTHON)" || { echo "mote needs Python 3.11 or newer: install it or run make PYTHON=/path/to/python" >&2; exit 1; }
	test -x $(LLAMA)/bin/python || $(PYTHON) -m venv $(LLAMA)
	CMAKE_BUILD_PARALLEL_LEVEL=$(JOBS) CMAKE_ARGS="-DGGML_NATIVE=ON" \
	  $(LLAMA)/bin/python -m pip install $(PIP_ARGS) --no-cache-dir --no-binary llama-cpp-python -r tests/export/requirements.txt
	touch $@

demo: $(INSTALLED)
	$(BIN)/mote pipeline recipes/small.yaml --out runs/small

# Hours and about 100 GB, on a machine with nothing else to do; of the demo's model only where `make demo` has made it.
# Reports of another kind of machine have a folder of their own (benchmarks/page.py lists them):
#   make bench BENCH=benchmarks/results/avx2
BENCH := benchmarks/results
bench: $(INSTALLED) $(PEERS)/.installed
	$(BIN)/python -m benchmarks.kernels --shape 0.5b 1.5b 3b --threads 1 2 --peers $(PEERS) --out $(BENCH)/kernels.json
	$(BIN)/python -m benchmarks.engine --shape 0.5b 1.5b --experts 4 16 --codec base3 2bit \
	  --expert-type TQ2_0 TQ1_0 Q4_0 --threads 1 2 --peers $(PEERS) --out $(BENCH)/engine.json
	$(BIN)/python -m benchmarks.engine --shape 3b --experts 4 16 --threads 1 2 --peers $(PEERS) --keep \
	  --out $(BENCH)/engine.json
	$(BIN)/python -m benchmarks.engine --shape 0.5b 1.5b --experts 4 64 --only "mote 4 base3" "mote 64 base3" \
	  --peers $(PEERS) --keep --out $(BENCH)/engine.json
	$(BIN)/python -m benchmarks.real --peers $(PEERS) --out $(BENCH)/real.json
	test ! -d runs/small/packed || $(BIN)/mote bench runs/small/packed --threads 1 \
	  --compare --data runs/small/data/val.jsonl --json > $(BENCH)/demo.json
	test ! -d runs/small/packed || $(BIN)/python -m benchmarks.ask --out $(BENCH)/ask.json
	$(BIN)/python -m benchmarks.plot
	$(BIN)/python -m benchmarks.page

# The engines that benchmarks/ compares with, built for this CPU in an environment of their own (about 15 minutes).
bench-peers-setup: $(PEERS)/.installed

$(PEERS)/.installed: $(wildcard benchmarks/peers/*.txt) benchmarks/peers/build_ik.py
	@test -n "$(PYTHON)" || { echo "mote needs Python 3.11 or newer: install it or run make PYTHON=/path/to/python" >&2; exit 1; }
	test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	CMAKE_BUILD_PARALLEL_LEVEL=$(JOBS) CMAKE_ARGS="-DGGML_NATIVE=ON" \
	  $(PEERS)/bin/python -m pip install $(PIP_ARGS) --no-cache-dir --no-binary llama-cpp-python -r benchmarks/peers/requirements.txt
	$(PEERS)/bin/python -m pip install $(PIP_ARGS) --no-deps -r benchmarks/peers/requirements-kernels.txt
	$(PEERS)/bin/python benchmarks/peers/build_ik.py --jobs $(JOBS) \
	  || echo "ik_llama.cpp does not build here: its rows will be left out" >&2
	touch $@

# The native library under AddressSanitizer and UndefinedBehaviorSanitizer, driven from C++.
sanitize: $(INSTALLED)
	$(BIN)/cmake -S . -B build/sanitize -DMOTE_SANITIZE=ON -DCMAKE_BUILD_TYPE=Debug
	$(BIN)/cmake --build build/sanitize --parallel $(JOBS)
	build/sanitize/native_driver
	build/sanitize/float_driver

# The library for 64-bit Arm under an emulator (Debian: g++-aarch64-linux-gnu, qemu-user): its drivers demand the bits of
# the plain kernels, and the NEON kernels must have been among those that ran.
CROSS := aarch64-linux-gnu-g++
QEMU := qemu-aarch64
test-neon: $(INSTALLED)
	@command -v $(CROSS) >/dev/null && command -v $(QEMU) >/dev/null || { \
	  echo "test-neon needs $(CROSS) and $(QEMU): apt-get install g++-aarch64-linux-gnu qemu-user" >&2; exit 1; }
	$(BIN)/cmake -S . -B build/neon -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
	  -DCMAKE_CXX_COMPILER=$(CROSS) -DMOTE_STATIC=ON
	$(BIN)/cmake --build build/neon --parallel $(JOBS) --target native_driver float_driver
	for driver in float_driver native_driver; do \
	  $(QEMU) -cpu max build/neon/$$driver --no-fork | tee build/neon/$$driver.txt; \
	  grep -q " on .*neon" build/neon/$$driver.txt; \
	done

# Damaged sizes and bytes, at random from a seed, against the same build. FUZZ_SECONDS bounds the time.
FUZZ_SECONDS ?= 60
fuzz: $(INSTALLED)
	$(BIN)/cmake -S . -B build/sanitize -DMOTE_SANITIZE=ON -DCMAKE_BUILD_TYPE=Debug
	$(BIN)/cmake --build build/sanitize --parallel $(JOBS)
	build/sanitize/native_fuzz $(FUZZ_SECONDS)

# The AVX512 kernels on a CPU without AVX512: SIMDe (Debian: libsimde-dev) in the place of the instructions.
test-avx512-emulated: $(INSTALLED)
	$(BIN)/cmake -S . -B build/emulated -DMOTE_EMULATE_AVX512=ON
	$(BIN)/cmake --build build/emulated --parallel $(JOBS)
	MOTE_LIBRARY=build/emulated/libmote.so OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) tests/kernels

wheel: $(BIN)/python
	$(BIN)/python -m pip wheel --no-deps $(PIP_ARGS) -w dist .

clean:
	rm -rf $(VENV) build dist
