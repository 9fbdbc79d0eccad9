# Every target sets up what it needs in .venv and reuses it. PYTHON chooses the interpreter (3.11 to 3.13).
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
JOBS ?= 2
DEMO ?= demo

.PHONY: demo demo-full test test-all fuzz links lint bench bench-all bench-gpu clean

demo: $(READY)
	$(BIN)/python examples/mini/demo.py --out $(DEMO)

demo-full: $(READY)
	$(BIN)/python examples/mini/demo.py --out $(DEMO) --hidden

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

test-all: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder -m "not gpu and not network"

# Hostile input of every kind, N cases of each in at most MINUTES for all: docs/reliability.md is written anew.
N ?= 1000
MINUTES ?= 10
fuzz: $(READY)
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python -m fuzz --n $(N) --minutes $(MINUTES) --keep build/fuzz --write

# The lines that docs/architecture.md's links lead to.
links:
	python3 tests/helpers_lines.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# A step and an inference against s3prl and transformers, docs/performance.md: half an hour on a machine that is idle.
bench: $(READY)
	for one in distill_step inference; do OMP_NUM_THREADS=1 $(BIN)/python benchmarks/$$one.py || exit 1; done
	$(BIN)/python benchmarks/report.py

# All that is measured, in over an hour.
bench-all: bench
	for one in profile_step bf16 growth startup loader mini_step gates; do \
		OMP_NUM_THREADS=1 $(BIN)/python benchmarks/$$one.py || exit 1; done
	$(BIN)/python benchmarks/report.py

bench-gpu: $(READY)
	PYTHON=$(BIN)/python bash benchmarks/gpu.sh

# About 6 GB: torch's wheels carry CUDA, also where there is no GPU.
$(READY): setup.cfg pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || python3 -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e ".[mini,dev]"
	touch $(READY)

clean:
	rm -rf $(VENV) build dist *.egg-info $(DEMO)
