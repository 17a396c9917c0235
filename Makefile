# Two commands matter: `make demo` and `make test`. Both start from nothing but Python >= 3.11 and make.
#
#   PYTHON              the interpreter that makes the environment (default python3)
#   VENV                where the environment lies (default .venv)
#   DIFALIGN_PIP_ARGS   further arguments for pip, for instance an index with CPU builds of torch
#   PROCESSES           processes of the demo (default 2, one thread each)
#   WORKERS             pytest workers (default 2)
#   BENCH_RESULTS       a folder that `make bench` appends its JSON lines to (default: only printed)

PYTHON ?= python3
VENV ?= .venv
DIFALIGN_PIP_ARGS ?=
PROCESSES ?= 2
WORKERS ?= 2
BENCH_RESULTS ?=

BIN := $(VENV)/bin
PY := $(BIN)/python
PIP := $(PY) -m pip --quiet --disable-pip-version-check
# Published scorers that the tests compare with. What they pin cannot be installed beside today's libraries, and the
# tests need none of it.
ORACLES := hpsv2x==1.2.0 image-reward==1.5
INSTALLED := $(VENV)/.installed
DOCS_INSTALLED := $(VENV)/.installed-docs

# The demo is small enough for a CPU, so it runs there by default, one thread a process: threads of several processes
# would fight over the cores. It stops by the clock, so its figures depend on the machine.
# `make demo DEMO_LAUNCH= DEMO_ENV=` leaves devices and processes to accelerate.
DEMO_CONFIG ?= configs/demo.yaml
DEMO_OUTPUT ?= runs/demo
DEMO_LAUNCH ?= $(if $(filter 1,$(PROCESSES)),--cpu,--multi_gpu) --num_processes $(PROCESSES) --num_machines 1 \
	--mixed_precision no --dynamo_backend no --num_cpu_threads_per_process 1
DEMO_ENV ?= ACCELERATE_USE_CPU=true CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1

.DEFAULT_GOAL := help
.PHONY: help install demo test test-all check check-install bench docs clean

help:
	@echo "make demo      align the shipped tiny model, write runs/demo/report.html"
	@echo "make test      the default tests"
	@echo "make test-all  also the slow ones"
	@echo "make check     lint, format, types, layers, house rules"
	@echo "make check-install  the newest releases in a fresh environment, from the network (6 GB)"
	@echo "make bench     speed against peers, a JSON line each"
	@echo "make docs      the documentation under docs/_build/html"
	@echo "make install   only the environment"

install: $(INSTALLED)

$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "difalign needs Python >= 3.11; name one with: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(INSTALLED): pyproject.toml constraints.txt | $(PY)
	@echo "Installing difalign into $(VENV) (some minutes the first time) ..."
	@$(PIP) install --constraint constraints.txt $(DIFALIGN_PIP_ARGS) --editable ".[dev]"
	@$(PIP) install --no-deps $(DIFALIGN_PIP_ARGS) $(ORACLES)
	@touch $@

$(DOCS_INSTALLED): $(INSTALLED)
	@$(PIP) install --constraint constraints.txt $(DIFALIGN_PIP_ARGS) --editable ".[dev,docs]"
	@touch $@

demo: install
	$(DEMO_ENV) $(BIN)/accelerate launch $(DEMO_LAUNCH) \
		train_flow_grpo.py --config $(DEMO_CONFIG) output_dir=$(DEMO_OUTPUT) overwrite=true

test: install
	$(PY) -m pytest -q -n $(WORKERS)

test-all: install
	$(PY) -m pytest -q -n $(WORKERS) -m "not gpu and not network"

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(PY)
	$(BIN)/lint-imports
	$(PY) -m pytest -q tests/house

check-install: install
	$(PY) -m pytest -q -m network tests/house/test_clean_install.py

bench: install
	@set -e; for script in benchmarks/bench_*.py; do \
		name=$$(basename $$script .py); echo "== $$name"; \
		OMP_NUM_THREADS=1 $(PY) -m benchmarks.$$name $(if $(BENCH_RESULTS),--output $(BENCH_RESULTS)/$${name#bench_}.jsonl); \
	done

docs: $(DOCS_INSTALLED)
	$(PY) -m sphinx -W --keep-going -b html docs docs/_build/html

clean:
	rm -rf build dist docs/_build .pytest_cache .ruff_cache .import_linter_cache
