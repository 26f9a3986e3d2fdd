# Thin: sets up .venv when it is missing or out of date, then calls the tools in it.
VENV   := .venv
BIN    := $(CURDIR)/$(VENV)/bin
PYTHON ?= python3
STAMP  := $(VENV)/.installed
# Address of PyTorch's index of CPU builds, to save 5 GB on a Linux machine without a GPU.
TORCH_INDEX ?=
export PATH := $(BIN):$(PATH)

.PHONY: repro toy tables report show test lint bench chaos plan preflight setup clean

repro: setup
	python stages/params.py
	dvc repro

toy: setup
	PYTHONPATH=src:stages python stages/toy/study_params.py
	dvc repro stages/toy/dvc.yaml

# The paper's tables as experiments: runs those of tables.yaml that have no result yet.
# make tables TABLES='--only semantic --workers 1'; TABLES=--list only says what there is.
TABLES ?=
tables: setup
	@PYTHONPATH=src:stages python stages/tables/campaign.py $(TABLES)

# What they gave, as metrics/report.html and metrics/report.md.
report: setup
	@PYTHONPATH=src:stages python stages/tables/report.py

# DVC's experiments side by side, without the hashes of data.
show: setup
	@dvc exp show --only-changed --drop '^(data|src|stages|metrics)/'

test: setup
	PYTHONPATH=src python -m pytest

lint: setup
	ruff check .
	ruff format --check .
	mypy
	codespell

bench: setup
	PYTHONPATH=src python -m pytest tests/benchmarks -o addopts=--strict-markers --benchmark-only --benchmark-disable-gc --benchmark-quiet -s -q

# Kills stages at random moments and starts them again; fails if anything ends otherwise than undisturbed.
MINUTES ?= 10
chaos: setup
	PYTHONPATH=src python -m tests.chaos --minutes $(MINUTES)

# What a preset costs, without data: make plan PRESET=imagenet PLAN='--gpus 8 --utilisation 0.5'
PRESET ?= imagenet
PLAN   ?=
plan: setup
	@PYTHONPATH=src python stages/plan.py --preset "$(PRESET)" $(PLAN)

# Whether all that a run will need is there, before it starts; fills the caches of weights.
preflight: setup
	@PYTHONPATH=src python stages/preflight.py --preset "$(PRESET)"

setup: $(STAMP)

# With TORCH_INDEX, torch and torchvision both come from there, and the pins of the CUDA builds do not apply.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "flowprior needs Python 3.11 or newer; name one with make PYTHON=..."; exit 1; }
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	python -m pip install --quiet --upgrade pip
	@if [ -n "$(TORCH_INDEX)" ]; then set -ex; \
	  grep -vE '^(torch|torchvision|triton|nvidia-.*|cuda-.*)==' constraints.txt > $(VENV)/constraints.txt; \
	  python -m pip install --index-url "$(TORCH_INDEX)" torch torchvision; \
	else cp constraints.txt $(VENV)/constraints.txt; fi
	python -m pip install --quiet --constraint $(VENV)/constraints.txt --editable '.[test,text]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) .ckpt .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
