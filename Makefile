# Two commands do everything: `make demo` and `make test`. They need Python 3.10+ and make, no more.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

.PHONY: demo test bench-training bench-speedup bench-overhead clean
.DELETE_ON_ERROR:

## make demo: train four peers and the baseline on handwritten digits, extract, bench
demo: $(VENV)/.installed
	rm -rf runs/demo
	$(BIN)/wmlc train digits --out runs/demo
	$(BIN)/wmlc extract --run runs/demo --peer all --out runs/demo/onnx/family.onnx
	$(BIN)/wmlc bench --run runs/demo --engine ort
	@echo "the run, its peers and their ONNX files: runs/demo/, runs/demo/peers/, runs/demo/onnx/"

## make test: lint, type check and tests; GPU tests skip where there is none
test: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/python tests/typecheck.py
	$(BIN)/python -m pytest

## benchmarks: the numbers in docs/results.md; run them on an otherwise idle machine
bench-training: $(VENV)/.installed
	$(BIN)/python tests/benchmarks/training_cost.py
bench-speedup: $(VENV)/.installed
	$(BIN)/python tests/benchmarks/paid_out.py
bench-overhead: $(VENV)/.installed
	$(BIN)/python -m wmlc.bench.overhead runs/demo/onnx/family-baseline.onnx

# uv installs in a fraction of pip's time; both read the same constraints
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
