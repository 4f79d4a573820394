# The commands a person needs. `make demo` and `make test` set up everything they use in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
CORES ?= 2
TORCH := torch==2.13.0

.PHONY: env demo test test-slurm test-gpu test-all bench lint format lock settings graph clean
.DEFAULT_GOAL := help

help:  ## list the commands
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

env: $(VENV)/.ready  ## create .venv with everything, at tested versions

# torch comes by itself, since its own dependencies differ between CPU and GPU builds. ColossalAI 0.5.0 pins an old torch
# and transformers, yet runs with these: requirements-nodeps.lock is installed without looking at what it declares.
$(VENV)/.ready: requirements.lock requirements-nodeps.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "brickreel needs Python 3.11 or newer: make env PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements.lock -r requirements-nodeps.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

demo: env demo/films/sources.csv  ## films, clips, captions, training, samples and the report, in ./demo
	$(BIN)/snakemake --configfile config/demo.yaml --directory demo --cores $(CORES) --quiet rules
	@echo "Open demo/results/report/index.html"

demo/films/sources.csv: | env
	$(BIN)/brickreel demo-films --out demo/films

test: env  ## the quick tests
	$(PYTEST) -n $(CORES)

test-slurm: env  ## start a Slurm cluster on this machine, run the tests that need it, stop it
	$(PYTEST) -m slurm

test-gpu: env  ## the tests that need an NVIDIA GPU
	$(PYTEST) -m gpu

test-all: env  ## everything: quick, slow and cluster tests; a failure does not keep the others from running
	@failed=; \
	$(PYTEST) -n $(CORES) || failed=1; \
	$(PYTEST) -m "slow and not slurm and not gpu" || failed=1; \
	$(PYTEST) -m slurm || failed=1; \
	test -z "$$failed"

bench: env  ## measure; writes results/bench/*.json; at the end, which missed a limit and which broke
	@$(BIN)/python bench/_all.py

lint: env  ## ruff, mypy, snakefmt, snakemake --lint
	$(BIN)/ruff check src tests bench
	$(BIN)/ruff format --check src tests bench
	$(BIN)/mypy
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/snakemake --lint --configfile config/demo.yaml --directory demo

format: env
	$(BIN)/ruff check --fix --quiet src tests bench
	$(BIN)/ruff format src tests bench
	$(BIN)/snakefmt Snakefile workflow

lock: env  ## write requirements.lock from what stands in .venv
	$(BIN)/python -m pip list --format=freeze $(foreach name,brickreel pip torch colossalai scenedetect,--exclude $(name)) > requirements.lock
	$(BIN)/python -m pip list --format=freeze | grep -E '^(colossalai|scenedetect)==' > requirements-nodeps.lock

settings: env  ## write docs/settings.md
	$(BIN)/brickreel settings --markdown > docs/settings.md

graph: demo/films/sources.csv  ## draw the rule graph of the README
	$(BIN)/snakemake --rulegraph dot --configfile config/demo.yaml --directory demo | dot -Grankdir=LR -Tsvg > docs/graph.svg

clean:
	rm -rf demo
