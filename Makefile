# Needs Python 3.11 or newer with venv, and network access to a package index.
#   make train                  train configs/quickstart.yaml   (ARGS="train.steps=200" overrides)
#   make test                   the test suite                  (TESTS="tests/data" runs a part)
#   make devices                training on simulated devices, and in several processes
#   make faults                 runs that are killed, one of them fifty times, and other faults
#   make parity                 comparison with transformers and lm-evaluation-harness (installs torch)
#   make lint                   formatting, lints, types, layers, the JSON schema
#   make PYTHON=python3.13 test  the same with another Python, in an environment of its own

SHELL := bash
PYTHON ?= python3
APART := tests/devices/ tests/faults/ tests/parity/ tests/tpu/
TESTS ?= $(filter-out $(APART),$(wildcard tests/*/ tests/test_*.py))
ARGS ?=

ifeq ($(origin PYTHON),file)
VENV := .venv
else
VENV := .venv-$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
endif
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --no-input

.PHONY: train test devices faults parity lint format benchmark clean
.DEFAULT_GOAL := train

# Huge pages make steps on a Linux CPU about a fifth faster. Other platforms ignore the variable.
train: export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

train: $(VENV)/.installed
	$(BIN)/python train.py configs/quickstart.yaml $(ARGS)

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2 --dist loadfile $(TESTS) $(ARGS)

devices: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2 --dist loadgroup tests/devices $(ARGS)

faults: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2 --dist loadfile tests/faults --kills 50 $(ARGS)

parity: $(VENV)/.installed-parity
	$(BIN)/python -m pytest -n 2 tests/parity tests/evaluate/test_harness.py $(ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/jaxformer schema --check configs/schema.json

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/jaxformer schema > configs/schema.json
	$(BIN)/jaxformer list mixers-page > docs/mixers.md
	$(BIN)/jaxformer list depth-page > docs/depth.md
	$(BIN)/jaxformer list structure-page > docs/structure.md
	$(BIN)/jaxformer list configuration-page > docs/configuration.md

benchmark: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/step.py $(ARGS)

clean:
	rm -rf .venv .venv-* .cache .mypy_cache .pytest_cache .ruff_cache .import_linter_cache build *.egg-info

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; give one: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(INSTALL) --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/python
	$(INSTALL) --editable '.[dev]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-parity: pyproject.toml | $(BIN)/python
	$(INSTALL) --editable '.[parity]'
	@touch $@ $(VENV)/.installed-dev $(VENV)/.installed
