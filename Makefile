# Everything here needs git, make and Python only; the rest is installed into .venv on first use.
# The Pythons to try, in this order. To choose: make demo PYTHON=/path/to/python3
PYTHON = python3 python3.13 python3.12 python3.11 python
# Most of the suite's time is compilation, one core a test; more processes than this only cost memory.
PYTEST_ARGS = -n logical --maxprocesses=4 --dist=worksteal

BIN := .venv/bin
STAMP := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test docs chaos lint format hooks clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' Makefile

demo: $(STAMP) ## train the plain network and the RMN on handwritten digits; table, figure, runs/demo/
	$(BIN)/python -m experiments.demo

test: lint ## check style and types, then run the whole test suite
	$(BIN)/python -m pytest $(PYTEST_ARGS)

docs: $(STAMP) ## build the documentation as a site in site/; a warning is an error
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

chaos: $(STAMP) ## kill, signal, edit and fuzz runs for up to 40 minutes; prints one JSON object of counts
	@JAX_PLATFORMS=cpu $(BIN)/python -m benchmarks.chaos

lint: $(STAMP) ## check style and types only
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP) ## rewrite the code in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

hooks: $(STAMP) ## run the style and type checks before every commit
	$(BIN)/pre-commit install

clean: ## remove the environment and caches; runs/ stays
	rm -rf .venv build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Debian's python3 comes without ensurepip until python3-venv is installed, hence the third import.
# A .venv whose Python is gone (or was never finished) is made anew, a working one is brought up to date.
$(STAMP): pyproject.toml constraints.txt
	@if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	  found=; for python in $(PYTHON); do \
	    "$$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 \
	      && found="$$python" && break; \
	  done; \
	  if [ -z "$$found" ]; then \
	    echo "rmn_jax needs Python 3.11 or newer with venv (Debian: apt install python3-venv)," \
	      "or name one: make demo PYTHON=/path/to/python3" >&2; \
	    exit 1; \
	  fi; \
	  "$$found" -m venv --clear .venv || exit 1; \
	fi
	@echo "Installing rmn_jax and its dependencies into .venv; the first time takes a minute or more."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
