# Every target does its own set-up in .venv. The torch that `make install` takes can be set:
#   make install TORCH=torch==2.11.0
TORCH  ?= torch==2.13.0
PYTHON ?= python3
# How long `make fuzz` takes for each reader, and `make sanitize` for random calls of the operators, from this seed.
SECONDS ?= 60
SEED    ?= 0
SHELL  := /bin/bash
VENV   := .venv
BIN    := $(VENV)/bin
NATIVE := $(shell find csrc -type f)
CPP    := $(shell find csrc tests -name "*.h" -o -name "*.cpp" -o -name "*.cu" -o -name "*.cuh")

# A file's tests stay together: what they set up once is set up once.
PARALLEL := -n auto --dist loadfile

# `make sanitize` builds here, beside the normal build. CPython and torch leak on purpose, so leaks are not looked for;
# nor is use after return: the stack that GCC 12 makes for it is not aligned for AVX-512 (its bug 110027).
# The sanitizers' runtime must be the process's first library, and with it the C++ library, which Python does not link.
# What torch cannot allocate it refuses, as it does without the sanitizers.
SANITIZED   := build/sanitize
RUNTIME     := libasan.so libubsan.so libstdc++.so
SANITIZE_IN := FASTNAS_SANITIZE=1 PYTHONPATH=$(CURDIR)/$(SANITIZED):$(CURDIR) PYTHONSAFEPATH=1 \
  PYTEST_ADDOPTS="-p no:cacheprovider --capture=sys --import-mode=append" \
  ASAN_OPTIONS=detect_leaks=0:detect_stack_use_after_return=0:allocator_may_return_null=1 \
  UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
  LD_PRELOAD="$(foreach library,$(RUNTIME),$(shell $(CXX) -print-file-name=$(library)))"

.PHONY: install search test docs bench sanitize fuzz lint format clean

install: $(VENV)/.installed

# torch first and by itself, so that nothing else chooses it; then the build finds it there.
$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check "$(TORCH)" numpy
	touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml setup.py $(NATIVE)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[dev]"
	$(BIN)/python -m fastnas.build_info
	touch $@

search: install
	$(BIN)/python -m fastnas.search $(ARGS)

test: install
	$(BIN)/python -m pytest $(PARALLEL) $(ARGS)

# The site: build/docs/index.html opens from the disk. A warning, a broken link or anchor among them, is an error.
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict $(ARGS)

bench: install
	$(BIN)/python -m pytest --benchmark-only $(ARGS)

# PYTHONSAFEPATH and append: the normal build, which lies in this folder, must not be found first.
# capture=sys: what the sanitizers write as they end the process is seen. Then random calls for so many SECONDS.
sanitize: install
	FASTNAS_SANITIZE=1 FASTNAS_CUDA=0 $(BIN)/python setup.py --quiet build_ext --build-lib $(SANITIZED) --build-temp $(SANITIZED)/objects
	$(SANITIZE_IN) $(BIN)/python -m pytest tests/ops tests/supernet/test_cell_op.py $(PARALLEL) $(ARGS)
	$(SANITIZE_IN) $(BIN)/python -m tests.ops.fuzz --seconds $(SECONDS) --seed $(SEED)

# Runs killed 200 times, then every reader of files, text and flags for SECONDS each, guided by coverage;
# ARGS="--target npz" takes one. Inputs with a fault are left in build/fuzz.
fuzz: install
	FASTNAS_FUZZ=long $(BIN)/python -m pytest tests/fuzz tests/runs/test_kill.py $(PARALLEL)
	$(BIN)/python -m tests.fuzz --seconds $(SECONDS) $(ARGS)

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CPP)

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/clang-format -i $(CPP)

clean:
	rm -rf $(VENV) build *.egg-info *.so
