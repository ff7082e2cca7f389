# `make demo` and `make test` need Python 3.11+ and make, nothing else: both set up .venv from requirements.lock first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
FAST := not slow and not ray and not deepspeed and not hosts and not gpu

.PHONY: demo test test-fast mutants check format lock clean

demo: $(READY)  ## the whole way on generated images
	$(BIN)/xfer demo

test: $(READY)  ## everything this machine can run; what starts clusters goes one at a time
	$(BIN)/python -m pytest -n 2 -m "not ray and not hosts"
	$(BIN)/python -m pytest -m "ray or hosts"

test-fast: $(READY)  ## under a minute
	$(BIN)/python -m pytest -m "$(FAST)"

mutants: $(READY)  ## breaks the code in named ways; the tests have to see each
	$(BIN)/python -m tests.mutants

check: $(READY)  ## lint, format, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/pyright -p pyright.tests.json  # names that a move left behind
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: $(READY)  ## requirements.lock again, from pyproject.toml
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 \
	  --generate-hashes --no-emit-index-url --no-annotate --no-header --quiet -o requirements.lock

clean:
	rm -rf $(VENV)

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "xfer needs Python 3.11 or newer; try: make PYTHON=python3.12")'
	@echo "setting up $(VENV) (about 6 GB, once)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==0.13.9
	@$(BIN)/uv pip install --quiet --system-certs --python $(BIN)/python --require-hashes -r requirements.lock
	@$(BIN)/uv pip install --quiet --system-certs --python $(BIN)/python --no-deps --editable .
	@touch $(READY)
