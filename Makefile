# Everything a newcomer needs; `make help` lists it. The first target that needs Python makes .venv and installs into it.
PYTHON ?= python3
SOURCE ?= imagenet
TARGET ?= digits
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint docs bench precompute train clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile
	@echo
	@echo "  SOURCE and TARGET choose what to work on; ARGS passes more options on, e.g."
	@echo "  make precompute SOURCE=places365 TARGET=stl10 ARGS='--views 4'"

setup: .venv/.ready  ## Make .venv and install the pinned packages (about 3 GB)

.venv/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "sskt needs Python 3.11 or newer, $(PYTHON) is " + sys.version.split()[0] + "; use make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: setup  ## Both stages on handwritten digits: three minutes, no download
	$(BIN)/sskt demo $(ARGS)

test: setup  ## Run the tests, on several cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal $(ARGS)

lint: setup  ## Check format, lint, types and the arrows between rooms
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: setup  ## Build the docs site into build/docs
	$(BIN)/python -m sphinx --fail-on-warning --keep-going -d build/doctrees docs build/docs

bench: setup  ## Measure epochs with cached, constant, live and no labels
	$(BIN)/python benchmarks/epochs.py $(ARGS)

precompute: setup  ## Stage one: make precompute SOURCE=places365 TARGET=stl10
	$(BIN)/sskt precompute --source $(SOURCE) --target $(TARGET) $(ARGS)

train: setup  ## Stage two: make train TARGET=stl10
	$(BIN)/sskt train --target $(TARGET) $(ARGS)

clean:  ## Remove caches and .venv; data, stores and runs stay
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache *.egg-info
