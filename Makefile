.DEFAULT_GOAL := help
.PHONY: help install demo test test-functions simulate killed check build picture benchmark benchmark-quality
PYTHON ?= python3
BIN := .venv/bin
ONE_THREAD := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
SAM_VERSION := 1.170.0
# a shim of pyenv's may be there and not run
PYTHON312 ?= $(firstword $(wildcard $(HOME)/.pyenv/versions/3.12*/bin/python3.12) python3.12)
# validating needs no account: a region for the template's sake, and nothing is told to anybody
SAM := SAM_CLI_TELEMETRY=0 AWS_DEFAULT_REGION=eu-central-1 .venv-sam/bin/sam

help: ## list the commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --disable-pip-version-check "torch==2.13.0"
	$(BIN)/pip install -q --disable-pip-version-check -e ".[train,export,local,demo,test,browser,check]"
	touch $@

# Spark is 400 MB: the tests run it, the demo does not
.venv/installed-spark: .venv/installed
	$(BIN)/pip install -q --disable-pip-version-check -e ".[spark]"
	touch $@

# what Lambda installs, and what its tests need: no torch, no pandas, no exporter
.venv-functions/installed: functions/requirements.txt pyproject.toml
	$(PYTHON) -m venv --clear .venv-functions
	.venv-functions/bin/pip install -q --disable-pip-version-check -r functions/requirements.txt -e ".[test]"
	touch $@

# an environment of its own: SAM's pins clash with ours
.venv-sam/installed-$(SAM_VERSION):
	$(PYTHON) -m venv --clear .venv-sam
	.venv-sam/bin/pip install -q --disable-pip-version-check "aws-sam-cli==$(SAM_VERSION)"
	touch $@

# Lambda's runtime client, for the test under the runtime emulator; without a Python 3.12 that test is skipped
.venv-lambda/installed:
	@if "$(PYTHON312)" -c "import sys; sys.exit(sys.version_info[:2] != (3, 12))" 2>/dev/null; then \
		"$(PYTHON312)" -m venv --clear .venv-lambda && \
		.venv-lambda/bin/pip install -q --disable-pip-version-check "awslambdaric==4.2.2" && touch $@; \
	else echo "no python3.12: the test under the runtime emulator is skipped"; fi

install: .venv/installed ## the environment alone (.venv)

demo: install ## real shop data, a trained model, the whole cloud and a page; ONCE=1 stops after the visit
	$(BIN)/python -m local.demo $(if $(filter-out 0,$(ONCE)),--once)

test: install .venv/installed-spark test-functions .venv-sam/installed-$(SAM_VERSION) .venv-lambda/installed ## installs, then passes all tests
	$(BIN)/python -m pytest

test-functions: .venv-functions/installed ## the functions' tests in an environment like Lambda's
	.venv-functions/bin/python -m pytest --ignore=tests/functions/test_artifact.py \
		--ignore=tests/functions/test_runtime_emulator.py \
		tests/functions tests/core $(wildcard tests/events)

simulate: install ## N histories of the stream with every fault; N=1000000 for a long run
	$(BIN)/python -m simulate --histories $(or $(N),10000)

build: install ## a function's zip, unpacked: build/artifact
	rm -rf build/artifact
	$(MAKE) -s -C functions build-ScoreFunction ARTIFACTS_DIR=$(abspath build/artifact) \
		PYTHON=$(abspath $(BIN)/python)

.venv/installed-bench: .venv/installed
	$(BIN)/pip install -q --disable-pip-version-check -e ".[bench]"
	touch $@

# Each measurement is a file of build/benchmark: what is there is not measured again, so a run that was broken
# off goes on, and `rm -r build/benchmark` begins anew. CHECKPOINT=folder of `python -m train` measures scoring on
# its items too.
REPORTS := build/benchmark
MEASURED := $(patsubst %,$(REPORTS)/%.json,scoring handler step swap open init emulator cost training)
BENCH := env $(ONE_THREAD) timeout 3600 $(BIN)/python -m bench
.SECONDARY: $(MEASURED)

benchmark: $(MEASURED) ## scoring, handlers, steps, cold start, cost, training: docs/benchmarks/performance.md
	$(BIN)/python -m bench performance --reports $(REPORTS)

$(REPORTS)/scoring.json: | .venv/installed-bench
	mkdir -p $(@D)
	$(BENCH) scoring --report $@.part $(if $(CHECKPOINT),--checkpoint $(CHECKPOINT)) && mv $@.part $@

$(patsubst %,$(REPORTS)/%.json,handler step swap open training): | install
	mkdir -p $(@D)
	$(BENCH) $(basename $(@F)) --json $@.part && mv $@.part $@

$(REPORTS)/init.json: | install build
	mkdir -p $(@D)
	$(BENCH) init --python $(PYTHON312) --json $@.part && mv $@.part $@

$(REPORTS)/emulator.json: | install .venv-sam/installed-$(SAM_VERSION) .venv-lambda/installed
	mkdir -p $(@D) && rm -f $@.part
	VITRINE_EMULATOR_REPORT=$(abspath $@.part) timeout 3600 \
		$(BIN)/python -m pytest tests/functions/test_runtime_emulator.py && mv $@.part $@

$(REPORTS)/cost.json: $(REPORTS)/handler.json bench/prices.toml
	$(BIN)/python -m bench cost --handler $< --json $@

benchmark-quality: install ## every baseline tuned and our model, side by side: docs/benchmarks/quality.md
	$(BIN)/python -m bench quality $(OPTIONS)

picture: install ## the README's picture, taken from a running `make demo`
	$(BIN)/python -m tests.web.picture

killed: install ## the local cloud's processes are killed while visitors shop, SECONDS=300; every row is checked
	$(BIN)/python -m tests.local.test_killed $(or $(SECONDS),300)

check: install .venv-sam/installed-$(SAM_VERSION) ## ruff, strict mypy, import rules, sam validate --lint
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/mypy functions train export local simulate bench
	$(BIN)/lint-imports
	$(SAM) validate --lint
