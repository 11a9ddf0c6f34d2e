# Each target makes .venv and installs what it needs there when that is missing or out of date.
#   make demo                    the main job on real text
#   make test ARGS='-k bert -x'  arguments for pytest
#   make test PYTHON=python3.12  another Python for a new .venv

SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
PEERS := .[bench,dev]
PINS := pyproject.toml constraints.txt
# $(call install,WHAT): shows the line of each package that is fetched.
install = set -o pipefail; $(BIN)/python -m pip install --disable-pip-version-check \
	-c constraints.txt -e '$(1)' | sed -n -e '/\.metadata /d' -e '/^ *Downloading /p'

.PHONY: help demo test lint bench same-python
# With -j two targets would install into the same environment at once.
.NOTPARALLEL:

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1	\2/p' $(MAKEFILE_LIST)

demo: $(VENV)/.installed ## pre-train a small BERT on real text, fine-tune it, compare (about five minutes)
	@$(BIN)/firth demo $(ARGS)

# Two processes of one thread: most tests are too small for more.
test: $(VENV)/.installed-dev ## run the tests
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

lint: $(VENV)/.installed-dev ## check format, lint rules, types and the import order
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports

bench: $(VENV)/.installed-bench ## measure speed against the named peers
	@for script in benchmarks/bench_*.py; do echo "== $$script"; $(BIN)/python "$$script" $(ARGS) || exit 1; done

$(BIN)/python:
	@echo "Making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "firth needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

# A .venv that is there stays as it is, so another Python that is asked for would go unused. The
# default asks for none: python3 may well be another one than that of .venv.
VERSION := import sys; print("%d.%d" % sys.version_info[:2])
same-python: | $(BIN)/python
ifneq ($(origin PYTHON),file)
	@wanted=$$($(PYTHON) -c '$(VERSION)') && found=$$($(BIN)/python -c '$(VERSION)') || exit 1; \
	if [ "$$wanted" != "$$found" ]; then \
		echo "$(VENV) has Python $$found, and PYTHON=$(PYTHON) is $$wanted: remove $(VENV) first, or leave PYTHON out" >&2; \
		exit 1; \
	fi
endif

$(VENV)/.installed: $(PINS) | $(BIN)/python same-python
	@echo "Installing firth into $(VENV) (the first time takes a few minutes)"
	@$(call install,.)
	@touch $@

$(VENV)/.installed-dev: $(PINS) | $(VENV)/.installed
	@echo "Installing the tools for tests and checks into $(VENV)"
	@$(call install,.[dev])
	@touch $@

$(VENV)/.installed-bench: $(PINS) | $(VENV)/.installed
	@echo "Installing the peers to measure against into $(VENV)"
	@$(call install,$(PEERS))
	@touch $@
