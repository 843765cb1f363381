# Two commands do everything: `make demo` and `make test`. They need Python 3.10+ and make, no more.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

.PHONY: demo test study bench-training bench-speedup bench-overhead clean
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

## make study DATA=DIR: the methods side by side on an image folder (docs/results.md, section 1); hours on a CPU
STUDY = --data imagefolder --data-root $(DATA) --train-images 26400 --held-out 0.05 --arch resnet20 --epochs 10
study: $(VENV)/.installed
	$(BIN)/wmlc train $(STUDY) --method wml --out runs/wml
	$(BIN)/wmlc train $(STUDY) --method wml-p --baseline runs/wml --out runs/wml-p
	$(BIN)/wmlc train $(STUDY) --method independent --baseline runs/wml --out runs/independent
	$(BIN)/wmlc bench --run runs/wml --engine ort
	$(BIN)/python tests/benchmarks/picture.py runs/wml docs/family.svg

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
