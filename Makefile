# From a fresh clone each target sets up all it needs: Python 3.11 or newer, make, a C compiler.

BIN := .venv/bin
# One exact version: given a range, some registries send gigabytes of CUDA libraries along.
TORCH := torch==2.13.0
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo $$python && break; done)
RUN := runs/shakespeare
# The others are parts of these, or need a table of published figures.
BENCHES := answer search data train truth generated quality scaling exchange network
# How long trainings are harmed at random: make proof SOAK_MINUTES=5
SOAK_MINUTES ?= 30
# Requests of each operation and kind that the server's own description gives: 10,000 in all.
CASES ?= 1700

.PHONY: help demo test check proof bench clean

help:
	@echo "make demo   a language model of Shakespeare, trained here in minutes, and a page about it"
	@echo "make test   the tests that need neither a GPU nor a network"
	@echo "make check  formatting, types, import layers"
	@echo "make proof  the slow tests, and predictions held against measurements on this machine"
	@echo "make bench  the benchmarks"

demo: .venv/ready
	@[ ! -e $(RUN) ] || mv $(RUN) $(RUN)-$$(date +%Y%m%d-%H%M%S)
	$(BIN)/narrows train examples/shakespeare.toml --run $(RUN)
	$(BIN)/narrows generate $(RUN) --prompt "ROMEO:" --tokens 200
	$(BIN)/narrows report $(RUN)

test: .venv/ready-dev
	$(BIN)/python -m compileall -q src
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile

check: .venv/ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

proof: .venv/ready-dev
	$(BIN)/pip install -qq --group proof
	NARROWS_SOAK_MINUTES=$(SOAK_MINUTES) NARROWS_CASES=$(CASES) OMP_NUM_THREADS=1 \
		$(BIN)/pytest -m slow -n 2 --dist loadfile --durations 40
	$(BIN)/python benchmarks/truth.py
	$(BIN)/python benchmarks/generated.py
	$(BIN)/python benchmarks/network.py

bench: .venv/ready-dev
	for each in $(BENCHES); do $(BIN)/python benchmarks/$$each.py || exit 1; done

clean:
	rm -rf .venv

.venv/ready: pyproject.toml
	@[ -n "$(PYTHON)" ] || { echo "error: Python 3.11 or newer was not found" >&2; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -qq --upgrade "pip>=25.1"
	$(BIN)/pip install -qq --editable . $(TORCH)
	$(BIN)/python -m compileall -q src
	@touch $@

.venv/ready-dev: .venv/ready
	$(BIN)/pip install -qq --group dev
	@touch $@
