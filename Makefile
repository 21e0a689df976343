# The commands of this project; `make` alone lists them. What you may set, on the command line or in the environment:
#
#   PYTHON=python3.12      the Python (3.11 or newer) that the virtual environment is made of
#   PIP_INSTALL_ARGS=…     more arguments for pip, for example the index of CPU-only torch builds (0.2 GB instead of several):
#                          make install PIP_INSTALL_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"
#   PYTEST_ARGS=…          more arguments for pytest, for example PYTEST_ARGS="-k partitions -x"
#   WORKERS=…              files of tests that run at a time; each may take 2 GB. By default 2, and 4 of those that start
#                          processes and mostly wait for them
#   BENCH_ARGS=…           arguments for each benchmark: --quick, --device cuda, --json FILE, --markdown docs/performance.md

PYTHON ?= python3
PIP_INSTALL_ARGS ?=
PYTEST_ARGS ?=
WORKERS ?=
BENCH_ARGS ?=

BENCHMARKS := spiking_inference conversion max_pooling accuracy federated_round snn_training snn_accuracy private_snn inversion scale secure_aggregation
# Markers of the tests that start processes of Flower, Ray or snnfl; `make test` runs one of them for each engine.
PROCESSES := ray or flwr or slow
# The files that have them: each worker would spend as long on collecting all others as on a test.
FILES_OF_PROCESSES = $(shell grep -rlE --include='test_*.py' 'mark\.(ray|flwr|slow)\b' tests)
PYTEST = $(BIN)/python -m pytest --dist loadfile --no-loadscope-reorder --numprocesses
# Pytest's status 5 says that it chose no test, which is right where PYTEST_ARGS chose none of these.
NONE_CHOSEN := $(if $(PYTEST_ARGS),|| [ $$? -eq 5 ])
NOT_COMPILED := .*/tests?|ray/(data|llm|rllib|serve|train|tune)|torch/(_inductor|testing)|sympy/(physics|stats)|Crypto|debugpy|fontTools|mypyc?|networkx|setuptools|torchaudio|torchmetrics
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# One thread per worker: on a shared machine OpenMP threads that wait for each other cost up to 30 times the time.
# Nothing that a test or a benchmark starts reports to a server, or asks one for updates.
test test-deployment bench notebooks: export OMP_NUM_THREADS := 1
test test-deployment bench notebooks: export FLWR_TELEMETRY_ENABLED := 0
test test-deployment bench notebooks: export FLWR_DISABLE_UPDATE_CHECK := 1
test test-deployment bench notebooks: export RAY_USAGE_STATS_ENABLED := 0
# Many images say that nothing compiled is to be kept: each process that tests start would compile our modules anew.
test test-deployment: export PYTHONDONTWRITEBYTECODE :=

.PHONY: help
help: ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: install
install: $(STAMP) ## make .venv with the pinned dependencies, if it is missing or out of date

$(BIN)/pip:
	@command -v "$(PYTHON)" >/dev/null || { echo "error: no $(PYTHON) here; install Python 3.11 or newer, or type make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $(PYTHON) is $$("$(PYTHON)" -V 2>&1), snnfl needs 3.11 or newer; type for example make PYTHON=python3.11" >&2; exit 1; }
	"$(PYTHON)" -m venv --clear $(VENV)

# Written last, so that an installation that fails or is interrupted is tried again. Pip would compile 21,000 modules on one
# processor, a minute; this takes all processors, and leaves out four in ten that nobody imports, or few: the libraries' tests,
# what of Ray and PyTorch we don't use, and packages that others depend on for something else. What is imported of these all
# the same is compiled then. It fails for modules that another Python is meant for, as pip does in silence.
$(STAMP): pyproject.toml constraints.txt | $(BIN)/pip
	$(BIN)/python -m pip install --disable-pip-version-check --no-compile -c constraints.txt $(PIP_INSTALL_ARGS) -e '.[dev]'
	@$(BIN)/python -m compileall -q -j 0 -x 'site-packages/($(NOT_COMPILED))/' $(VENV)/lib >/dev/null || true
	@touch $@

.PHONY: demo
demo: $(STAMP) ## S-FedAvg beside FedAvg on real digits: 3 minutes, results in runs/demo/
	@$(BIN)/snnfl demo

.PHONY: lint
lint: $(STAMP) ## ruff check, ruff format --check, mypy --strict
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy --num-workers 2

.PHONY: test
test: lint ## lint, then every test and doctest that starts no processes, and a run on each engine
	@$(PYTEST) $(or $(WORKERS),2) -m 'engine or not ($(PROCESSES))' $(PYTEST_ARGS) $(NONE_CHOSEN)

.PHONY: test-deployment
test-deployment: $(STAMP) ## the other tests: deployments, clusters, kills, studies, benchmarks, documentation, containers
	@$(PYTEST) $(or $(WORKERS),4) -m '($(PROCESSES)) and not engine' -o testpaths='$(FILES_OF_PROCESSES)' $(PYTEST_ARGS) $(NONE_CHOSEN)

.PHONY: bench
bench: $(STAMP) ## every benchmark with its bars, one line per number; BENCH_ARGS="--markdown docs/performance.md" writes them down
	@for name in $(BENCHMARKS); do $(BIN)/python benchmarks/$$name.py $(BENCH_ARGS); done

.PHONY: docs
docs: $(STAMP) ## the documentation site into site/, a broken link is an error; open site/index.html
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

.PHONY: notebooks
notebooks: $(STAMP) ## execute docs/notebooks again and keep what they print
	@$(BIN)/python -m nbconvert --to notebook --execute --inplace --ClearMetadataPreprocessor.enabled=True \
		--ClearMetadataPreprocessor.clear_notebook_metadata=False docs/notebooks/*.ipynb

.PHONY: clean
clean: ## remove what make made (.venv and caches), never runs/
	rm -rf $(VENV) build dist site *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find snnfl clients strategies experiments tests benchmarks -type d -name __pycache__ -prune -exec rm -rf {} +
