# Everything a newcomer runs. Needs Python 3.11 or 3.12, git, make and g++; each target sets up .venv by itself.

PYTHON ?= $(firstword $(shell command -v python3.11 python3.12 python3))
VENV := .venv
BIN := $(VENV)/bin
PRESET ?= local
ARGS ?=

# One thread per process: for models this small a second one gains next to nothing on an idle machine, and on a loaded
# one it ran ten to twenty times slower. For `run` a setting of your own stays.
run: export OMP_NUM_THREADS ?= 1
test check: export OMP_NUM_THREADS = 1

.PHONY: help install run test check bench base-models clean

help: ## what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

install: $(VENV)/.installed ## set up .venv

$(VENV)/.installed: pyproject.toml constraints.txt scripts/install.sh
	sh scripts/install.sh $(PYTHON) $(VENV) constraints.txt '-e .[train,pipelines,serve,feedback,dev]'
	touch $@

run: install ## the main job: data, reward, diffusion, evaluation, report (ARGS='--set seed=1' …)
	$(BIN)/vca run --preset $(PRESET) $(ARGS)

test: install ## every test
	$(BIN)/pytest $(ARGS)

check: install ## the fast part: lint, types, tests that take seconds
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -m "not slow" $(ARGS)

# A benchmark that compares with a peer of older libraries names these in benchmarks/NAME.requirements.txt; they get an
# environment of their own, whose Python the benchmark finds in PEER_PYTHON.
PEER := $(if $(wildcard benchmarks/$(NAME).requirements.txt),.venv-$(NAME))

bench: install $(if $(PEER),$(PEER)/.installed) ## one benchmark: make bench NAME=data_prep
	@test -n "$(NAME)" -a -f "benchmarks/$(NAME).py" || \
	  { echo "make bench NAME=…, one of: $(filter-out __init__ _%,$(basename $(notdir $(wildcard benchmarks/*.py))))"; exit 2; }
	$(if $(PEER),PEER_PYTHON=$(PEER)/bin/python) $(BIN)/python -m benchmarks.$(NAME) $(ARGS)

.venv-%/.installed: benchmarks/%.requirements.txt scripts/install.sh
	sh scripts/install.sh $(PYTHON) .venv-$* - '-r benchmarks/$*.requirements.txt'
	touch $@

base-models: install ## train the small base models that the local preset ships
	$(BIN)/python -m scripts.base_models $(ARGS)

clean: ## remove what the targets made, except runs/
	rm -rf .venv .venv-* build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis local_outputs
