# `make demo` and `make test` need Python >= 3.10 with venv, g++ and nothing else; everything goes into .venv.
PYTHON ?= python3
BIN := .venv/bin
SOURCES := setup.py pyproject.toml CMakeLists.txt constraints.txt $(shell find csrc esvae esvae_kernels -name '*.py' -o -name '*.h' -o -name '*.cpp' -o -name '*.cu')

.PHONY: help install demo test peers bench gpu lint sanitize sanitize-address sanitize-thread clean
.NOTPARALLEL: # pip builds in build/, one module at a time

help:
	@echo "make demo   install, train on digits for some minutes, write grids, print the metrics"
	@echo "make test   install, run every test"
	@echo "make peers  install SpikingJelly and snnTorch too: to compare with them, and to test the drop-in layers"
	@echo "make bench  install, compare speeds"
	@echo "make gpu    on a machine with a GPU, with the Python that is there: its tests, compute-sanitizer, its benchmarks"
	@echo "make lint   formatting and lint"
	@echo "make sanitize   the kernel tests under AddressSanitizer with UndefinedBehaviorSanitizer, then ThreadSanitizer"

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
	TRITON_INTERPRET=1 $(BIN)/pytest tests/test_triton_*.py

# Other libraries, to compare with and to convert. Without what they require: one wants torchvision, of a matching torch.
peers: install
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps spikingjelly snntorch
	$(BIN)/pip install --quiet --constraint constraints.txt loguru tqdm h5py

bench: install
	$(BIN)/pytest bench

# No venv, no download: PYTHON has torch, Triton, pytest, hypothesis, scipy, scikit-learn, pybind11, cmake and ninja.
# DRY=1: where there is no GPU, the same on the CPU at tiny sizes.
gpu:
	$(PYTHON) tests/gpu.py $(if $(DRY),--dry-run)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# A module of their own for the sanitizers, each in a folder with the package beside it. ARGS="-v -k ..." goes to pytest.
sanitize: sanitize-address sanitize-thread

build/sanitize-address/.built: SANITIZERS := address,undefined
build/sanitize-thread/.built: SANITIZERS := thread
build/sanitize-%/.built: $(SOURCES) | install
	rm -rf $(@D)
	CXX=g++ CMAKE_ARGS=-DESVAE_SANITIZE=$(SANITIZERS) $(BIN)/pip install --quiet --no-deps --target $(@D) .
	@touch $@

# Python is not built with a sanitizer, so the runtime is preloaded; with libstdc++, or it does not find what throws.
preload = LD_PRELOAD="$(foreach library,$(1) stdc++,$(shell g++ -print-file-name=lib$(library).so))"
# Not under a sanitizer: what compiles or inspects Python, and what measures time. --capture=sys lets the reports through.
# Two threads on any machine. A test file that is not there is no error.
sanitized = OMP_NUM_THREADS=2 PYTHONPATH=build/sanitize-$(1) $(BIN)/pytest --quiet --capture=sys -m "not slow" \
  -k "not test_compile and not test_opcheck and not interpreter_goes_on" $(ARGS) \
  $(wildcard $(patsubst %,tests/test_%.py,lif bn_lif poisson surrogate backends kernels_nn))

# Leaks are not looked for: Python and torch leave 10 MB at exit, and the kernels allocate no memory.
sanitize-address: build/sanitize-address/.built
	$(call preload,asan) ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 $(call sanitized,address)

# Misuse of mutexes is not looked for: the kernels have none, and of torch's ThreadSanitizer sees only some calls.
# It goes on after a race; the exit status is then 66 at the end.
sanitize-thread: build/sanitize-thread/.built
	$(call preload,tsan) TSAN_OPTIONS=report_mutex_bugs=0:suppressions=$(CURDIR)/tests/sanitize.supp $(call sanitized,thread)

clean:
	rm -rf .venv build dist *.egg-info _esvae_kernels*.so
