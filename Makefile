# make demo: install, train for two minutes, write a report.   make test: the test suite.   make check: lint, types, layers.
PYTHON ?= python3
PIP_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed

.PHONY: install demo test test-slow test-gpu check bench evidence evidence-quick docs format clean

install: $(READY)

$(READY): requirements.lock pyproject.toml setup.py $(wildcard native/*)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(PIP_ARGS) -r requirements.lock
	$(BIN)/pip install --quiet $(PIP_ARGS) --no-deps -e .
	touch $(READY)

demo: $(READY)
	$(BIN)/shoestring train --budget 2m

test: $(READY)
	$(BIN)/python -m pytest

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

test-gpu: $(READY)
	$(BIN)/python -m pytest -m gpu

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)
	$(BIN)/python bench/throughput.py
	$(BIN)/python bench/time_to_loss.py

evidence: $(READY)
	$(BIN)/python bench/evidence.py

evidence-quick: $(READY)
	$(BIN)/python bench/evidence.py --quick

docs: $(READY)
	$(BIN)/python -m shoestring.report.methods_table

clean:
	rm -rf $(VENV) build src/*.egg-info src/shoestring/lowbit/kernels/library .pytest_cache .ruff_cache .mypy_cache .hypothesis .import_linter_cache
