# Everything runs in .venv, which the first target that needs it makes. Needs only python3 (3.11 or newer) with venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DETECTORS := $(VENV)/.detectors
DEMO := out/demo

# Tests are many small operations: a process per core is faster than threads, which would only wait for each other.
# tests/conftest.py puts the slow files first; pytest-xdist would begin with those that have the most tests.
TEST_PROCESSES ?= 2

.PHONY: help demo test lint types format hooks models schema configuration clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(STAMP)  ## generate a picture with and without safety guidance into out/demo
	$(BIN)/sld generate "a red knight on a meadow" --model playground --policy max --compare \
		--guidance-scale 4 --out $(DEMO) --overwrite

test: $(DETECTORS)  ## run the tests
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder

lint: $(STAMP)  ## check style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)  ## check types
	$(BIN)/mypy

format: $(STAMP)  ## apply format and safe fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

hooks: $(STAMP)  ## write docs/hooks.md anew
	$(BIN)/python -c 'from sldcore.documents import write_text_atomically as write; \
		from sldcore.hook_reference import markdown; write("docs/hooks.md", markdown())'

models: $(STAMP)  ## write the table of docs/models.md anew
	PYTHONPATH=tests:tests/families $(BIN)/python -W ignore tests/families/support_matrix.py

schema: $(STAMP)  ## write concepts/schema.json anew
	$(BIN)/python -c 'import json; from sldcore.concepts import pack_schema as schema; \
		from sldcore.documents import write_text_atomically as write; \
		write("concepts/schema.json", json.dumps(schema(), indent=2) + "\n")'

configuration: $(STAMP)  ## write docs/configuration.md anew
	$(BIN)/python -c 'from sldcore.documents import write_text_atomically as write; \
		from sldcore.service.settings_reference import markdown; write("docs/configuration.md", markdown())'

clean:  ## remove the environment and what was generated
	rm -rf $(VENV) out build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

.venv: $(STAMP)

# torch goes first and alone, so that its large download is not repeated when another package cannot be resolved.
$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { \
		echo "cannot make $(VENV): install python3 (3.11 or newer) with venv (Debian: apt install python3-venv)" >&2; \
		exit 1; }
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "$(VENV) has a Python older than 3.11: make clean, then make PYTHON=python3.11 ..." >&2; exit 1; }
	$(BIN)/pip install --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

# Detectors that only tests run; one of them is AGPL, so nothing else installs them.
$(DETECTORS): $(STAMP) requirements-filters.txt requirements-filters-nodeps.txt
	$(BIN)/pip install --disable-pip-version-check -c constraints.txt -r requirements-filters.txt
	$(BIN)/pip install --disable-pip-version-check --no-deps -r requirements-filters-nodeps.txt
	@touch $@
