.DEFAULT_GOAL := help
.PHONY: help install test check
PYTHON ?= python3
BIN := .venv/bin

help: ## list the commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --disable-pip-version-check "torch==2.13.0"
	$(BIN)/pip install -q --disable-pip-version-check -e ".[train,export,demo,test,check]"
	touch $@

install: .venv/installed ## the environment alone (.venv)

test: install ## installs, then passes all tests
	$(BIN)/python -m pytest

check: install ## ruff, strict mypy, import rules
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/mypy functions train export
	$(BIN)/lint-imports
