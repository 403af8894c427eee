# make demo | make test | make test-all | make bench | make lint: each sets up .venv by itself.
# PIP_ARGS goes to every pip call, for instance to take CPU-only wheels of torch from PyTorch's own index.

PYTHON ?= python3
PIP_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PEERS := $(VENV)/.peers
# Two processes side by side, one thread each: the tests are many and small.
export OMP_NUM_THREADS ?= 1

.PHONY: setup demo test test-all bench lint clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "TimeGrain needs Python 3.11 or newer, $(PYTHON) is older: make PYTHON=python3.11 ..."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt torch torchvision
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	touch $(READY)

demo: setup
	$(BIN)/timegrain demo --out runs/demo

test: setup
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow and not gpu"

test-all: setup
	$(BIN)/python -m pytest -n 2 --dist worksteal

# Peers that can't be had on this machine are no reason to stop: their rows say that they were not measured.
$(PEERS): $(READY)
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e '.[bench]' || \
	  echo "not all peers can be installed here; benchmarks/RESULTS.md says which were not measured"
	touch $(PEERS)

bench: $(PEERS)
	$(BIN)/python benchmarks/run.py

lint: setup
	$(BIN)/ruff check src tests benchmarks examples docs
	$(BIN)/ruff format --check src tests benchmarks examples docs/images
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
