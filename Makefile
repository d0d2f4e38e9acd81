# `make setup` makes the environment, `make test` and `make demo` make it first when it is missing or stale.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT := out
# Of a GPU machine, which brings its own torch and needs neither .venv nor Ray.
GPU_PYTHON ?= python3
GPU_NEEDS := torch numpy yaml safetensors pynvml pytest hypothesis pytest_timeout transformers
GPU_TESTS := $(wildcard $(addprefix tests/,model kernels trainer checkpoint data hugging_face evaluate records verify))

.PHONY: setup demo test lint test-chaos test-gpu verify-parity verify-resume clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else f"Holdfast needs Python 3.11 or newer; {sys.executable} is {sys.version.split()[0]}. Name another: make setup PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: setup
	$(BIN)/holdfast demo --out $(OUT)/demo

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest -m 'not chaos' $(PYTEST_ARGS)

test-gpu:
	@$(GPU_PYTHON) -c 'import importlib.util as u, sys; missing = [n for n in sys.argv[1:] if not u.find_spec(n)]; sys.exit(sys.executable + " lacks " + ", ".join(missing) + ". Install them, or name another Python: make test-gpu GPU_PYTHON=..." if missing else 0)' $(GPU_NEEDS)
	OMP_NUM_THREADS=1 PYTHONPATH=$(CURDIR) $(GPU_PYTHON) -m pytest -m 'not chaos and not cluster' $(GPU_TESTS) $(PYTEST_ARGS)

verify-parity: setup
	$(BIN)/python tests/verify/verify_parity.py --out $(OUT)/verify/parity.json

verify-resume: setup
	$(BIN)/python tests/verify/verify_resume.py --out $(OUT)/verify/resume.json

test-chaos: setup
	$(BIN)/python -m pytest -m chaos $(PYTEST_ARGS)

clean:
	rm -rf $(VENV) $(OUT)
