# Two commands do everything: `make demo` and `make test`; `make check` is the quick one. They need Python 3.10+ and make, no more.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

# Environments of their own, for servers and readers whose packages do not go with ours; .servers/ holds them.
SERVERS := .servers
ENVIRONMENTS := triton mlserver trt-lean-10 trt-lean-11

.PHONY: demo test check slow lint servers browser study serving bench-training bench-speedup bench-overhead bench-repeat gpu clean
.DELETE_ON_ERROR:

## make demo: train four peers and the baseline on handwritten digits, extract, bench
demo: $(VENV)/.installed
	rm -rf runs/demo
	$(BIN)/wmlc train digits --out runs/demo
	$(BIN)/wmlc extract --run runs/demo --peer all --out runs/demo/onnx/family.onnx
	$(BIN)/wmlc bench --run runs/demo --engine ort --profile
	$(BIN)/wmlc choose --run runs/demo --max-macs 2e6
	$(BIN)/wmlc report runs/demo
	$(BIN)/wmlc ship --run runs/demo --peer 2 --to triton --out runs/demo/model_repository --replace
	@echo "the run, its peers, their ONNX files and Triton's repository: runs/demo/ and peers/, onnx/, model_repository/ in it"
	@echo "look at it: runs/demo/report.html"

# Two workers that take each other's tests, so that both end together; a worker's torch gets one thread, as two
# of them share the cores. Both caches last (.ruff_cache, .mypy_cache), so that a second check takes seconds.
WORKERS ?= 2
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

## make test: lint, type check and tests; what needs a GPU or a server that is not here skips in words
test: lint servers browser
	$(PYTEST)

## make check: lint, type check and the tests that take less than a second each, for between two edits
# The others are named in tests/slow.txt; `make slow` adds those that have become slow since.
check: lint
	$(PYTEST) -m "not slow"
slow: $(VENV)/.installed
	$(PYTEST) -m "not slow" --record-slow

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/python tests/typecheck.py

## make servers: real servers and foreign readers for the tests; what cannot be installed is left out, in words
servers: $(ENVIRONMENTS:%=$(SERVERS)/%/.installed) $(SERVERS)/node/.installed

$(SERVERS)/%/.installed: tests/servers/%.txt | $(VENV)/.installed
	@rm -rf $(@D) && $(PYTHON) -m venv $(@D) && VIRTUAL_ENV=$(@D) $(BIN)/uv pip install --quiet --compile-bytecode --requirement $< && touch $@ \
	|| echo "make servers: $* could not be installed here; its tests will skip"

$(SERVERS)/node/.installed: tests/servers/readers/package.json
	@mkdir -p $(@D) && cp $< $(@D) && npm install --prefix $(@D) --ignore-scripts --no-package-lock --silent && touch $@ \
	|| echo "make servers: onnxruntime-node could not be installed here; its test will skip"

## make browser: Debian's Chromium for the test that opens a report; without it, or the right to install it, that test skips
browser:
	@command -v chromium chromium-browser google-chrome >/dev/null \
	|| { test "$$(id -u)" = 0 && apt-get update -qq && apt-get install -qq --no-install-recommends chromium >/dev/null; } \
	|| echo "make browser: no Chromium here and none could be installed; the report's browser test will skip"

## make serving: a demo repository under 64 concurrent clients for a minute (docs/results.md)
serving: servers
	$(BIN)/python tests/benchmarks/serving_load.py --repository runs/demo/model_repository --clients 64 --seconds 60

## make study DATA=DIR: the methods side by side on an image folder (docs/results.md, section 1); hours on a CPU
STUDY = --data imagefolder --data-root $(DATA) --train-images 26400 --held-out 0.05 --arch resnet20 --epochs 10
study: $(VENV)/.installed
	$(if $(DATA),,$(error DATA=DIR says where the image folder lies))
	$(BIN)/wmlc train $(STUDY) --method wml --join sum --out runs/wml
	$(BIN)/wmlc train $(STUDY) --method wml-p --join sum --baseline runs/wml --out runs/wml-p
	$(BIN)/wmlc train $(STUDY) --method independent --baseline runs/wml --out runs/independent
	$(BIN)/wmlc bench --run runs/wml --engine ort
	$(BIN)/python tests/benchmarks/picture.py runs/wml docs/family.svg

## make gpu: what only a GPU can show, in at most 9 minutes: build/gpu/section.md (DRY=1: at toy size on a CPU; DATA: where cifar10-png/ lies)
gpu: $(VENV)/.installed
	mkdir -p build && OUT=build/gpu PYTHON=$(abspath $(BIN)/python) evidence/gpu.sh

## benchmarks: the numbers in docs/results.md; run them on an otherwise idle machine
bench-training: $(VENV)/.installed
	$(BIN)/python tests/benchmarks/training_cost.py
bench-speedup: $(VENV)/.installed
	$(BIN)/python tests/benchmarks/paid_out.py
bench-overhead: $(VENV)/.installed
	$(BIN)/python tests/benchmarks/overhead.py runs/demo/onnx/family-baseline.onnx
	$(BIN)/python tests/benchmarks/single_stream.py runs/demo/onnx/family-baseline.onnx
bench-repeat: $(VENV)/.installed
	$(BIN)/python tests/benchmarks/repeat.py runs/demo

# uv installs in a fraction of pip's time; both read the same constraints. Compiled at once: a test that starts a
# process would otherwise compile torch anew where Python may not write beside it
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --compile-bytecode --constraint constraints.txt --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV) $(SERVERS) build .mypy_cache .ruff_cache .pytest_cache *.egg-info
