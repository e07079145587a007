# Everything starts from Python and make alone. PYTHON chooses the interpreter (3.11 or newer).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: help demo train-demo eval-demo test check format bench-gpu clean

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

demo: $(VENV)/.demo ## answer questions about drawn scenes with the embedded model; pictures go to demo_out/
	$(BIN)/vila-jax demo --out demo_out

train-demo: $(VENV)/.train ## train nano's last stage for some minutes (progress, plot, checkpoints), then ask the result
	$(BIN)/vila-jax demo --seconds 0 --out demo_out
	$(BIN)/python -m train configs/nano/demo.py --runs demo_out/runs
	$(BIN)/vila-jax ask demo_out/runs/nano/demo/export --image demo_out/scene_1.png --prompt "How many shapes are there?"

eval-demo: $(VENV)/.demo ## what fewer visual tokens cost: nano at five budgets by three methods; writes demo_out/eval/report.html
	$(BIN)/python -m eval run --model nano --tasks scenes --limit 100 --batch 16 --draw 1 --out demo_out/eval \
	  --budget all $(foreach method,hired random downsample,$(foreach keep,0.6 0.4 0.2 0.1 0.05,$(method):$(keep)))

test: $(VENV)/.test ## the whole test suite (CPU, no network)
	$(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

check: $(VENV)/.test ## lint, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.test ## mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench-gpu: ## everything that is measured on one GPU, in parts, into bench_out/; goes on where it stopped
	PYTHON=$(PYTHON) bench/h200.sh bench_out

clean: ## remove what make has made
	rm -rf $(VENV) .cache demo_out

# The stamps depend on pyproject.toml, so that changed requirements are installed.
$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "vila_jax needs Python 3.11 or newer: make PYTHON=..."'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml | $(VENV)/bin/python
	$(PIP) -e '.[demo]'
	touch $@

$(VENV)/.train: pyproject.toml | $(VENV)/bin/python
	$(PIP) -e '.[train]'
	touch $@

$(VENV)/.test: pyproject.toml | $(VENV)/bin/python
	$(PIP) -e '.[test]'
	touch $@
