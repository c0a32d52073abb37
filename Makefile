# `make` prints the targets. Everything happens in .venv; `make run` and `make test` set it up on a fresh machine.
PYTHON ?= python3.11
VENV ?= .venv
BIN = $(VENV)/bin
PORT ?= 5000
# Test processes. One file's tests stay together: they share fixtures and compiled kernels.
JOBS ?= 2
TEST = $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder
.DEFAULT_GOAL := help
.PHONY: help setup test test-all test-core test-foreign test-foreign-quick lint format typecheck run sweep ui bench compare lock docs docs-serve build clean papers results

help:  ## print the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 20

# What a run needs, and no more: the developer's tools are half of the packages. Python compiles the modules that a run
# imports, a sixth of them, when it imports them; pip would compile all 15,000 (docs/installing.md).
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --no-compile -c constraints.txt -e .
	@touch $@

# tonic comes alone where its dependency expelliarmus, which it never imports, has no wheel (docs/installing.md).
$(VENV)/.developing: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt -e ".[dev,sweep]"
	$(BIN)/python -c "import importlib.metadata as m; m.version('tonic')" 2>/dev/null \
	  || $(BIN)/pip install -q --no-deps -c constraints.txt tonic
	@touch $(VENV)/.installed $@

setup: $(VENV)/.developing  ## create .venv and install everything that is pinned

run: $(VENV)/.installed  ## train the default network and leave its record in mlflow.db
	$(BIN)/snnexp

sweep: $(VENV)/.installed  ## four neurons with all else shared, three seeds, one parent run
	$(BIN)/snnexp -m neuron=fixed,rouser,plif,ttfs recipe=common seed=0,1,2

# In the order of cost on a GPU. A file whose data is not there says so, and the next one starts; a cut-off `make papers`
# goes on where it was. DEVICE=cuda, SEEDS=0,1,2, ONLY=rouser (a part of the name), ARGS="trainer.max_epochs=2 ...".
PAPERS = four_neurons rouser_fig6a rouser_fig3 rouser_fig4 rouser_fig5 rouser_epochs rouser_fig6b rouser_fig2 plif_small stbp_speed \
  stbp_voting stbp_encoding ettfs_mnist ettfs_fashion_mnist ettfs_steps rouser_table1 rouser_shd rouser_fig2_dvs128 \
  rouser_dvs128 plif_tau16 ettfs_ablation ettfs_dvs128 neunorm_nmnist plif_fashion_mnist plif_mnist plif_dvs128 \
  plif_nmnist ettfs_cifar10 neunorm_cifar10dvs plif_cifar10dvs plif_cifar10 neunorm_cifar10
papers: $(VENV)/.installed  ## every published table whose data is here: results/, figures, docs/results.md
	@for name in $(PAPERS); do case $$name in *$(ONLY)*) \
	  $(BIN)/snnexp task=reproduce +experiment=$$name dataset.download=false \
	    $(if $(DEVICE),device=$(DEVICE)) $(if $(SEEDS),seed=$(SEEDS)) $(ARGS) \
	    || { code=$$?; [ $$code = 2 ] || exit $$code; };; esac; done
	$(MAKE) results

results: $(VENV)/.installed  ## docs/results.md, and every figure in results/, from results/*.json
	$(BIN)/python -m snnexp.claims.page results docs/results.md

ui: $(VENV)/.installed  ## serve the record at http://127.0.0.1:$(PORT)
	@echo "http://127.0.0.1:$(PORT)/#/experiments/1/runs?workflowType=machine_learning&compareRunsMode=CHART"
	MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false \
	  $(BIN)/mlflow server --backend-store-uri sqlite:///$(CURDIR)/mlflow.db --workers 1 --port $(PORT)

test: setup  ## lint, type check and the fast tests (CPU, no network)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(TEST)

test-all: setup  ## all tests, the slow ones too
	$(TEST) -m "slow or not slow"

# What depends on Python itself and on the packages' versions: installing, composing, dataclasses, kernels, stores.
CORE = tests/test_install.py tests/test_docs.py tests/training/test_golden.py tests/neurons/test_neuron_equation.py \
  tests/data/test_event_readers.py tests/tracking/test_local_record.py
test-core: setup  ## the part of the tests that runs on other Pythons:  make test-core PYTHON=python3.13 VENV=.venv-3.13
	$(TEST) $(CORE)

# Other processors round differently; golden curves, equations, networks and losses must not care.
QUICK = tests/training/test_golden.py tests/neurons/test_neuron_equation.py tests/neurons/test_neuron_peers.py \
  tests/models/test_network.py tests/analysis tests/test_encoders.py tests/test_decoders.py
test-foreign-quick: setup  ## a part of the numeric tests as on the plainest processor, a minute
	NUMBA_CPU_NAME=native PYTHON=$(BIN)/python tests/foreign_processor.sh default 1 -n $(JOBS) --dist loadfile --no-loadscope-reorder $(QUICK)

test-foreign: setup  ## all numeric tests with the instructions of other processors, with one and two threads
	for instructions in default avx2 native; do for threads in 1 2; do \
	  PYTHON=$(BIN)/python tests/foreign_processor.sh $$instructions $$threads || exit 1; done; done

lint: setup  ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: setup  ## let ruff rewrite the files
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

typecheck: setup  ## mypy, strict
	$(BIN)/mypy

benchmarks/.peers: benchmarks/peers.txt
	$(BIN)/pip install -q --no-deps --upgrade --target $@ -r $<
	@touch $@

bench: setup benchmarks/.peers  ## the benchmarks of docs/benchmarks.md, about 12 minutes; results in outputs/bench
	$(BIN)/python -m benchmarks

compare: setup  ## does B (the working tree if left out) compute what A does?  make compare A=HEAD [B=commit]
	$(BIN)/python -m benchmarks.compare $(A) $(B)

# The local label of a CPU build is cut off, so that plain pip takes the right build of the same version anywhere;
# triton is left out, because a CUDA build of torch asks for its own.
lock: setup  ## write constraints.txt from what is installed in .venv
	$(BIN)/pip freeze --exclude-editable | grep -vE '^(snnexp|triton|nvidia)' | sed -E 's/^(torch==[^+]*)\+.*/\1/' > constraints.txt

$(VENV)/.docs: pyproject.toml constraints.txt | setup
	$(BIN)/pip install -q -c constraints.txt -e ".[docs]"
	@touch $@

docs: $(VENV)/.docs  ## the documentation as a site in site/; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build -q

docs-serve: $(VENV)/.docs  ## the site while you write
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

build: setup  ## wheel and source archive in dist/
	$(BIN)/python -m build

clean:  ## remove build products and caches, never data or records
	rm -rf dist build site .pytest_cache .mypy_cache .ruff_cache src/*.egg-info
