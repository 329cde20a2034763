# `make demo` and `make test` are all a newcomer needs; `make help` lists the rest.
# The environment is .venv: the pinned lock on Python 3.11, the ranges of pyproject.toml on later ones.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
QUANTISED := .venv-quantised
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed
# Two processes, as the machine that all this is tried on has two cores; a file's tests stay together.
LANES := -n 2 --no-loadscope-reorder
MINOR := $(shell $(PYTHON) -c 'import sys; print(sys.version_info[1])')

.DEFAULT_GOAL := help
.PHONY: demo tune test test-slow test-quantised check bench lock clean help

demo: $(STAMP)  ## continue the pretraining of a real model on three processes, then two, and talk to it
	$(RUN) -m examples.demo

tune: $(STAMP)  ## tune the same model on dialogues with LoRA and DPO, and let transformers judge
	$(RUN) -m examples.tune

test: $(STAMP)  ## the test suite
	$(RUN) -m pytest -q $(LANES)

test-slow: $(STAMP)  ## the longer proofs: real weights, the built wheel, kill -9
	$(RUN) -m pytest -q -m "slow and not gpu" --timeout 1800 $(LANES)

test-quantised: $(QUANTISED)/.installed  ## GPTQ and AWQ folders, in an environment of their own
	GPTQMODEL_CPU_WORKERS=2 $(QUANTISED)/bin/python -m pytest -q tests/hf_bridge/models/test_saved_quantised.py --timeout 900

check: $(STAMP)  ## formatting, lint, types, and which package may call which
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

bench: $(STAMP)  ## the benchmarks, each one ratio; on an otherwise idle machine
	$(RUN) tests/bench/help_cost.py
	for layout in TP1 TP2+SP PP2; do $(RUN) tests/bench/step.py $$layout || exit 1; done
	$(RUN) tests/bench/hf_trainer.py
	for what in step memory start; do $(RUN) tests/bench/bridge_step.py $$what || exit 1; done
	$(RUN) tests/bench/convert.py
	$(RUN) tests/bench/convert.py --folder /dev/shm
	$(RUN) -m tests.bench.packing
	$(RUN) -m examples.smollm2 demo/smollm2
	$(RUN) -m tests.bench.data_build --tokenizer demo/smollm2

lock:  ## resolve pyproject.toml under requirements/pins.txt into requirements/lock-py311.txt
	python3.11 requirements/lock.py

clean:  ## remove .venv, builds and caches; runs and the demo's folder stay
	rm -rf $(VENV) $(QUANTISED) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): pyproject.toml requirements/lock-py311.txt requirements/demo-no-deps.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit(f"Python 3.11 or later is needed, {sys.executable} is {sys.version.split()[0]}: make PYTHON=/path/to/python3.11")'
ifeq ($(MINOR),11)
	@$(PYTHON) requirements/install.py $(VENV) -r requirements/lock-py311.txt
	@$(PYTHON) requirements/install.py $(VENV) --no-deps -e .
else
	@$(PYTHON) requirements/install.py $(VENV) -e '.[test,dev]'
endif
	@$(PYTHON) requirements/install.py $(VENV) --no-deps -r requirements/demo-no-deps.txt
	@touch $@

$(QUANTISED)/.installed: requirements/lock-py311.txt requirements/quantised-no-deps.txt
	@$(PYTHON) requirements/install.py $(QUANTISED) -r requirements/lock-py311.txt
	@$(PYTHON) requirements/install.py $(QUANTISED) --no-deps -e . 'setuptools>=77'
	@BUILD_CUDA_EXT=0 $(PYTHON) requirements/install.py $(QUANTISED) --no-deps --no-build-isolation -r requirements/quantised-no-deps.txt
	@touch $@
