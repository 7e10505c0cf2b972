# Two commands on a fresh machine: `make demo` and `make test`. Both build their own environment in .venv.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install -q -c constraints.txt

.PHONY: demo test lint docs claims bench bench-env clean

demo: $(VENV)/.installed
	$(BIN)/notan compare simclr mae hpm selfie --out demo

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest --cov=notan --cov-report=term:skip-covered tests

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy

docs: $(VENV)/.installed
	$(BIN)/python docs/build.py

bench: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/views.py

# Peers that need torchvision live in an environment of their own: an importable-looking but broken torchvision
# beside a CPU build of torch breaks transformers too.
bench-env: $(VENV)-bench/.installed
	$(VENV)-bench/bin/python benchmarks/steps.py
	$(VENV)-bench/bin/python benchmarks/clip.py
	$(VENV)-bench/bin/python benchmarks/embed.py

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# torch first and pinned: whatever comes after then finds it satisfied and brings no CUDA packages.
$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) torch
	$(PIP) -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) -e ".[dev,bench]"
	touch $@

$(VENV)-bench/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)-bench
	$(VENV)-bench/bin/python -m pip install -q -c constraints.txt torch
	$(VENV)-bench/bin/python -m pip install -q -c constraints.txt -e ".[bench]" vit-pytorch lightly open_clip_torch sentence-transformers
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-bench demo build *.egg-info .pytest_cache .mypy_cache .ruff_cache
