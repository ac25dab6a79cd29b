# make demo     install, fetch a real scene, map its buildings
# make test     install with the test tools, then run the whole check
# make check    the whole check, in the environment as it is
# make format   format, and fix what can be fixed without thinking
#
# Another Python: make PYTHON=python3.12 test (the environment is made once; remove .venv to change it).

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo

.DEFAULT_GOAL := help
.PHONY: help demo test check format

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

demo: $(VENV)/.installed
	@set -e; \
	scene="$$($(BIN)/geoseg sample amsterdam)"; \
	$(BIN)/geoseg segment "$$scene" buildings --out $(DEMO); \
	id="$$(basename "$$scene" .tif)"; \
	echo; \
	echo "Look at (QGIS opens both):"; \
	echo "  $(DEMO)/$$id/footprints.geojson   the buildings"; \
	echo "  $(DEMO)/$$id/labels.tif           the label map"; \
	echo "  $$scene   the scene below them"

test: $(VENV)/.installed-test
	@$(MAKE) --no-print-directory check

# This recipe is the definition of "the check", for people and machines alike.
check:
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/pytest

format:
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -e .
	@touch $@

$(VENV)/.installed-test: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -e '.[test]'
	@touch $(VENV)/.installed $@

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || \
		{ echo "geoseg needs Python 3.11 or newer, and there is no '$(PYTHON)': make PYTHON=/path/to/python ..."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "geoseg needs Python 3.11 or newer, and '$(PYTHON)' is $$($(PYTHON) --version 2>&1):" \
		"make PYTHON=/path/to/python ..."; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }
