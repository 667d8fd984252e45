# One command per task; `make` lists them.
PYTHON ?= python

.DEFAULT_GOAL := help
.PHONY: help install test test-all lint format types docs wheel try-wheel ci clean

help: ## what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: ## this checkout, editable, with all that the tests and checks need
	$(PYTHON) -m pip install -c constraints.txt -e '.[dev]'

test: ## the inner loop: tests without a cluster, a browser, W&B or new processes
	$(PYTHON) -m pytest -n auto -m "not (slurm or spawn or browser or wandb)"

test-all: ## all tests; as root on Debian this installs a SLURM and trains on it
	$(PYTHON) -m pytest -n auto

lint: ## style and spelling
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m codespell_lib

format: ## repair the style
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

types: ## types
	$(PYTHON) -m mypy

docs: ## the documentation as a site, site/index.html; warnings and broken links are errors
	$(PYTHON) -m sphinx --fail-on-warning --keep-going --quiet --builder html docs site

wheel: ## dist/*.whl, by way of the source distribution
	$(PYTHON) -m build

try-wheel: ## the wheel in a fresh environment, from an empty folder
	.ci/try_wheel

ci: ## all that must pass on every change, in fresh environments
	.ci/run

clean: ## remove what builds and checks left behind; runs stay
	rm -rf build dist site docs/reference *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find benchmarks dino_exp hydra_plugins launchers tests -name __pycache__ -type d -prune -exec rm -rf {} +
