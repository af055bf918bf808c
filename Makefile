# `make demo` and `make test` need Python >= 3.11 with venv, g++ and nothing else; everything goes into .venv.
PYTHON ?= python3
BIN := .venv/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
INSTALL := install
OWN_VENV := norse sinabs
# Files of tests in as many processes, in order: by number of tests the few long ones would come last, one by one. Threads
# that wait sleep, or those of one process would keep another from its cores.
SIDE_BY_SIDE = -n $(or $(JOBS),2) --dist loadfile --no-loadscope-reorder
SOURCES := setup.py pyproject.toml CMakeLists.txt constraints.txt $(shell find csrc esvae esvae_kernels -name '*.py' -o -name '*.h' -o -name '*.cpp' -o -name '*.cu')

.PHONY: help install info demo test test-all peers bench soak gpu gpu-train wheel check-install lint sanitize sanitize-address sanitize-thread clean
.NOTPARALLEL: # pip builds in build/, one module at a time

help:
	@echo "make demo   install, draw images with the shipped model, write grids"
	@echo "make test   install, test every part, with a sample of the combinations of options (JOBS=2: in so many processes)"
	@echo "make test-all   every test, with every combination: thrice as long"
	@echo "make info   what runs here, and why the rest does not"
	@echo "make peers  install SpikingJelly, snnTorch, Norse and sinabs too: to compare with them, to test the drop-in layers"
	@echo "make bench  install, compare speeds"
	@echo "make soak   trainings killed at random instants, a million damaged files: an hour"
	@echo "make gpu    on a machine with a GPU, with the Python that is there: its tests, compute-sanitizer, its benchmarks"
	@echo "make gpu-train   on such a machine: train on Fashion-MNIST for 9 minutes at most; again: goes on"
	@echo "make lint   formatting, lint, types"
	@echo "make wheel  an sdist and a wheel, into dist/"
	@echo "make check-install   whether constraints.txt resolves on every platform and Python"
	@echo "make sanitize   the kernel tests under AddressSanitizer with UndefinedBehaviorSanitizer, then ThreadSanitizer"

install: .venv/.installed

.venv/.installed: $(SOURCES)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python >= 3.11 is needed, PYTHON=$(PYTHON) is older"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || { echo "no venv module: apt-get install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --constraint constraints.txt '.[dev]'
	@$(BIN)/python -c 'from esvae_kernels import native as n; print("esvae_kernels:", n.why_missing or "compiled")'
	@touch $@

demo: install
	$(BIN)/esvae demo

info: install
	$(BIN)/esvae info

test test-all: export OMP_WAIT_POLICY = passive
test test-all: TESTS = $(SIDE_BY_SIDE) --durations=15
test-all: TESTS += --all
test test-all: install
	$(BIN)/pytest $(TESTS)
	@if $(BIN)/python -c 'import triton' 2> /dev/null; then TRITON_INTERPRET=1 $(BIN)/pytest $(TESTS) tests/test_triton_*.py; \
	  else echo "there is no Triton for this system: what needs its interpreter is not tested"; fi
	@set -e; for library in $(OWN_VENV); do ! test -x .venv-$$library/bin/python || \
	  .venv-$$library/bin/python -m pytest $(TESTS) tests/dropin/test_$$library*.py tests/dropin/test_nir.py; done

# Other libraries, to compare with and to convert. Without what they require: some want torchvision, of a matching torch.
# Norse and sinabs want different releases of nir, and so have a venv each, on top of .venv.
peers: install $(OWN_VENV:%=.venv-%/.installed)
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps spikingjelly snntorch nir nirtorch
	$(BIN)/pip install --quiet --constraint constraints.txt loguru tqdm h5py

.venv-norse/.installed: PACKAGES := norse nir nirtorch
.venv-sinabs/.installed: PACKAGES := sinabs 'nir<=1.0.4' 'nirtorch<2' pbr
.venv-%/.installed: constraints.txt | install
	$(BIN)/python -m venv $(@D)
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > $$($(@D)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/below.pth
	$(@D)/bin/pip install --quiet --constraint constraints.txt --no-deps $(PACKAGES)
	@touch $@

bench: install
	$(BIN)/pytest bench

# KILLS=50 CASES=1000000: how many trainings, how many files.
soak: install
	$(BIN)/python tests/soak_kill.py --trials $(or $(KILLS),50)
	$(BIN)/python tests/soak_fuzz.py --cases $(or $(CASES),1000000)

# No venv, no download: what PYTHON has to have, and OUT and TIME_LIMIT, are in `python tests/gpu.py --help`.
# DRY=1: where there is no GPU, the same on the CPU at tiny sizes. ONLY=bench, model, tests or sanitize: that part alone.
gpu: export OUT := $(OUT)
gpu: export TIME_LIMIT := $(TIME_LIMIT)
gpu:
	$(PYTHON) tests/gpu.py $(if $(DRY),--dry-run) $(if $(ONLY),--only $(ONLY))

# No download either: PYTHON has torch, Triton and the extra `model`. DATA_DIR: the folder of the data, PRESET=paper: the
# other preset, TIME_LIMIT: seconds for everything, OUT: what it leaves, and goes on with. ARGS: options of `esvae train`.
gpu-train:
	$(if $(DATA_DIR),ESVAE_DATA_DIR="$(DATA_DIR)") $(PYTHON) bench/gpu_train.py $(if $(DRY),--dry-run) \
	  --preset $(or $(PRESET),best) --time-limit $(or $(TIME_LIMIT),560) --out "$(or $(OUT),runs/gpu-train)" -- $(ARGS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml

# Every extra on every platform and Python, from an index, without downloading a wheel.
check-install: install
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python tests/check_install.py

# An sdist, and of that a wheel: on Linux with the lowest manylinux tag that this machine's compiler and C library allow.
# libgomp stays torch's, which is loaded before.
wheel: $(INSTALL)
	rm -rf dist build/wheel
	$(BIN)/python -m build --outdir dist .
	@if test "$$(uname)" = Linux; then mkdir -p build && mv dist/*.whl build/ && PATH="$(abspath $(BIN)):$$PATH" \
	  $(BIN)/auditwheel repair --exclude libgomp.so.1 --wheel-dir dist build/*.whl && rm build/*.whl; fi
	@ls -l dist

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

# Leaks are not looked for: Python and torch leave 10 MB at exit, and what the kernels allocate has an owner (parallel.h).
sanitize-address: build/sanitize-address/.built
	$(call preload,asan) ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 $(call sanitized,address)

# Misuse of mutexes is not looked for: the kernels have none, and of torch's ThreadSanitizer sees only some calls.
# It goes on after a race; the exit status is then 66 at the end.
sanitize-thread: build/sanitize-thread/.built
	$(call preload,tsan) TSAN_OPTIONS=report_mutex_bugs=0:suppressions=$(CURDIR)/tests/sanitize.supp $(call sanitized,thread)

clean:
	rm -rf .venv $(OWN_VENV:%=.venv-%) build dist *.egg-info _esvae_kernels*.so
