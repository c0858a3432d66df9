# Each target makes the virtual environment that it needs: nothing but make and Python 3.11 or newer has to be there.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help demo test test-lowest lint bench clean

help:
	@echo "make demo   compress models/resnet14.onnx on real labelled images and show what came out"
	@echo "make test   run the tests"
	@echo "make test-lowest   part of the tests with the oldest versions of everything"
	@echo "make lint   ruff and mypy"
	@echo "make bench  the benchmarks' commands and what they measure"
	@echo "make clean  remove environment, build output and caches"

$(VENV)/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + ": make PYTHON=python3.12")'
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { echo "this Python lacks ensurepip: install python3-venv (Debian, Ubuntu), or name another one: make PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml $(VENV)/pyvenv.cfg
	$(PIP) -e .
	@touch $@

$(VENV)/.installed-for-tests: $(VENV)/.installed
	$(PIP) -e '.[test]'
	@touch $@

$(VENV)/.installed-for-lint: $(VENV)/.installed
	$(PIP) -e '.[lint]'
	@touch $@

demo: $(VENV)/.installed
	@mkdir -p demo-out
	$(BIN)/onnxcompress compress models/resnet14.onnx -o demo-out/resnet14.onnx --recipe int8-weights \
	    --data models/fmnist_calib.npz --eval models/fmnist_test.npz --metric top1 --json demo-out/report.json --force

test: $(VENV)/.installed-for-tests
	$(BIN)/python -m pytest -q -n 2

# Part of the tests with the oldest versions of everything.
test-lowest:
	@test -x $(VENV)-lowest/bin/python || $(PYTHON) -m venv $(VENV)-lowest
	$(VENV)-lowest/bin/python -m pip install --quiet --disable-pip-version-check -r tools/requirements-lowest.txt
	$(VENV)-lowest/bin/python -m pytest -q -n 2 tests/io/test_model_io.py tests/runtime/test_session.py tests/cli/test_cli.py tests/runtime/test_isolation.py tests/distillation/test_train.py

lint: $(VENV)/.installed-for-lint
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python tools/check_english.py

bench: $(VENV)/.installed-for-tests
	$(BIN)/python tools/bench.py --help

clean:
	rm -rf $(VENV) $(VENV)-lowest demo-out build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find onnxcompress tests tools -name __pycache__ -type d -prune -exec rm -rf {} +
