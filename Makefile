# Everything runs in .venv, which the targets make and keep up to date by themselves.
# `make quickstart` for a first run, `make test` for everything CI checks, `make check` for daily work.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= 1

.PHONY: help install install-test quickstart test check format bench evidence readme test-floors clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "lightning-zoo needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V). Try: make PYTHON=python3.11 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

# The stamps are newer than what they were made of, so nothing is installed twice.
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	touch $@

$(VENV)/.installed-test: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	touch $(VENV)/.installed $@

install: $(VENV)/.installed ## Make .venv with what runs need
install-test: $(VENV)/.installed-test ## ... and what tests need

quickstart: export OMP_NUM_THREADS := 2
quickstart: install ## Train a small model on handwritten digits (about two minutes)
	$(BIN)/zoo fit --config quickstart

test: install-test ## Everything: lint, types, tests, the wheel
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not bench" --durations=15

check: install-test ## Format, lint, types, arrows and the fast tests
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not bench and not slow" -q

bench: export OMP_NUM_THREADS := 2
bench: install-test ## Speed, as ratios within one run
	$(BIN)/python -m pytest tests/benchmarks -m bench -s -q

evidence: export OMP_NUM_THREADS := 2
evidence: install-test ## Run the experiments behind the README's evidence table that have no result yet
	$(BIN)/python tests/evidence/run.py

test-floors: ## The fast tests on the oldest versions that pyproject.toml admits, in .venv-floors
	test -d .venv-floors || $(PYTHON) -m venv .venv-floors
	$(PYTHON) tests/packaging/floors.py > .venv-floors/floors.txt
	.venv-floors/bin/python -m pip install --quiet --disable-pip-version-check --constraint .venv-floors/floors.txt --editable '.[test]'
	# Types are checked against the newest versions only: old packages have other stubs.
	.venv-floors/bin/python -m pytest -n auto --dist worksteal -m "not bench and not slow" -q --ignore tests/packaging/test_types.py

clean: ## Remove what builds and tests leave behind (not .venv, not runs)
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +
