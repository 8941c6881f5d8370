# Each target sets up what it needs; the second time there is nothing to set up.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-fast test-matrix docs chaos lint bench clean

demo: .venv/ready
	PATH="$(CURDIR)/$(BIN):$$PATH" bash examples/demo.sh

test: .venv/ready .venv/tpu/ready docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH="$(CURDIR)/.venv/tpu" $(BIN)/python -m pytest

# What is quick, after each change: two to three minutes.
test-fast: .venv/ready
	$(BIN)/python -m pytest -m "not slow"

# The same with every supported Python that is installed, with the tested and the newest packages:
# an hour, and 2 GB for each environment. By hand, before a release or a change of the ranges.
test-matrix:
	bash tests/matrix.sh

# The pages as a site, in build/site; a broken link fails.
docs: .venv/docs/ready
	NO_MKDOCS_2_WARNING=1 .venv/docs/bin/mkdocs build

# Kills, signals, full disks and damaged files, for a run of every architecture: under an hour.
chaos: .venv/ready
	$(BIN)/python -m tests.chaos

lint: .venv/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/mypy

bench: .venv/ready
	$(BIN)/python -m jaxmodels bench

# One environment for everything, with the versions that were tested together.
.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit(f"Python 3.11 or later is needed, this is {v[0]}.{v[1]}: make PYTHON=/path/to/python3.11")'
	@echo "Setting up .venv: a few minutes and about 2 GB the first time."
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

# The compiler for TPUs, beside the environment: only tests need it, and it weighs 700 MB.
.venv/tpu/ready: .venv/ready
	$(BIN)/pip install --disable-pip-version-check --constraint constraints.txt --no-deps --upgrade --target .venv/tpu libtpu
	@touch $@

# MkDocs in an environment of its own, since the project does not need it: the extra [docs].
.venv/docs/ready: constraints.txt
	$(PYTHON) -m venv .venv/docs
	.venv/docs/bin/pip install --disable-pip-version-check --constraint constraints.txt mkdocs-material
	@touch $@

clean:
	rm -rf .venv runs build
