# `make demo` and `make test` need Python >= 3.10 with venv, g++ and nothing else; everything goes into .venv.
PYTHON ?= python3
BIN := .venv/bin
SOURCES := setup.py pyproject.toml CMakeLists.txt constraints.txt $(shell find csrc esvae esvae_kernels -name '*.py' -o -name '*.h' -o -name '*.cpp')

.PHONY: help install demo test bench lint clean

help:
	@echo "make demo   install, train on digits for some minutes, write grids, print the metrics"
	@echo "make test   install, run every test"
	@echo "make bench  install, compare speeds (SpikingJelly and snnTorch too, where installed in .venv)"
	@echo "make lint   formatting and lint"

install: .venv/.installed

.venv/.installed: $(SOURCES)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "Python >= 3.10 is needed, PYTHON=$(PYTHON) is older"; exit 1; }
	@command -v g++ >/dev/null || { echo "a C++17 compiler is needed: apt-get install g++"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || { echo "no venv module: apt-get install python3-venv"; exit 1; }
	$(BIN)/pip install --quiet --constraint constraints.txt '.[test]'
	@touch $@

demo: install
	$(BIN)/esvae demo

test: install
	$(BIN)/python -c 'import esvae_kernels as k; assert "cpu" in k.available_backends(), "the cpu backend is missing"'
	$(BIN)/pytest

bench: install
	$(BIN)/pytest bench

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf .venv build dist *.egg-info _esvae_kernels*.so
