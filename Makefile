# Thin: sets up .venv when it is missing or out of date, then calls the tools in it.
VENV   := .venv
BIN    := $(CURDIR)/$(VENV)/bin
PYTHON ?= python3
STAMP  := $(VENV)/.installed
# Address of PyTorch's index of CPU builds, to save 5 GB on a Linux machine without a GPU.
TORCH_INDEX ?=
# faiss-gpu brings 1.4 GB that a CPU never uses.
FAISS ?= $(if $(shell command -v nvidia-smi),gpu,cpu)
EXTRAS := pipeline,test,text,docs,$(FAISS)
export PATH := $(BIN):$(PATH)
export PYTHONPATH := src

.PHONY: repro toy tables report show test test-slow lint docs bench chaos plan preflight setup clean

repro: setup
	@flowprior config > /dev/null
	dvc repro

toy: setup
	dvc repro stages/toy/dvc.yaml

# The paper's tables as experiments: runs those of tables.yaml that have no result yet.
# make tables TABLES='--only semantic --workers 1'; TABLES=--list only says what there is.
TABLES ?=
tables: setup
	@flowprior tables $(TABLES)

# What they gave, as metrics/report.html and metrics/report.md.
report: setup
	@flowprior report

# DVC's experiments side by side, without the hashes of data.
show: setup
	@dvc exp show --only-changed --drop '^(data|src|stages|plugins|metrics)/'

# Two halves: what runs in minutes, and what kills, restarts and reruns whole pipelines. WORKERS: processes at a time.
WORKERS ?= auto
test: setup
	OMP_NUM_THREADS=1 python -m pytest -n $(WORKERS) --dist loadscope -m "not slow" -q

test-slow: setup
	OMP_NUM_THREADS=1 python -m pytest -n $(WORKERS) --dist loadscope -m slow -q

lint: setup
	ruff check .
	ruff format --check .
	mypy
	codespell
	mkdocs build --strict --quiet --site-dir $(VENV)/site

docs: setup
	mkdocs build --strict --site-dir site

bench: setup
	python -m pytest tests/benchmarks -o addopts=--strict-markers --benchmark-only --benchmark-disable-gc --benchmark-quiet -s -q

# Kills stages at random moments and starts them again; fails if anything ends otherwise than undisturbed.
MINUTES ?= 10
chaos: setup
	python -m tests.chaos --minutes $(MINUTES)

# What a preset costs, without data: make plan PRESET=imagenet PLAN='--gpus 8 --utilisation 0.5'
PRESET ?= imagenet
PLAN   ?=
plan: setup
	@flowprior plan --preset "$(PRESET)" $(PLAN)

# Whether all that a run will need is there, before it starts; fills the caches of weights.
# make preflight PRESET=imagenet PREFLIGHT='--images /datasets/imagenet'
preflight: setup
	@flowprior preflight --preset "$(PRESET)" $(PREFLIGHT)

setup: $(STAMP)

# uv from the machine, or one of .venv's own. Bytecode is compiled here, once: where it cannot be written later
# (PYTHONDONTWRITEBYTECODE, a read-only tree), every process would compile torch and timm again, for seconds. With
# TORCH_INDEX, torch and torchvision both come from there, and the pins of the CUDA builds do not apply.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "flowprior needs Python 3.11 or newer; name one with make PYTHON=..."; exit 1; }
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	@command -v uv >/dev/null || $(BIN)/python -m pip install --quiet uv
	@if [ -n "$(TORCH_INDEX)" ]; then set -ex; \
	  grep -vE '^(torch|torchvision|triton|nvidia-.*|cuda-.*)==' constraints.txt > $(VENV)/constraints.txt; \
	  uv pip install --quiet --compile-bytecode --python $(BIN)/python --index-url "$(TORCH_INDEX)" torch torchvision; \
	else cp constraints.txt $(VENV)/constraints.txt; fi
	uv pip install --quiet --compile-bytecode --python $(BIN)/python --constraint $(VENV)/constraints.txt --editable '.[$(EXTRAS)]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) .ckpt .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks site
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
