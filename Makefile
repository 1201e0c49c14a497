# Two commands matter: `make demo` and `make test`. Each installs what it needs into .venv and says what it does.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test check peers lock clean

demo: $(STAMP)
	$(BIN)/backline demo

test: $(STAMP)
	$(BIN)/python -m pytest -m "not slow and not gpu"

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/unit/test_import_direction.py

# Backline beside MusicGen and Stable Audio; what they need lies apart from what users install.
peers: $(VENV)/peers/.installed
	PYTHONPATH=$(VENV)/peers $(BIN)/python infra/benchmarks/peers.py $(ARGS)

$(VENV)/peers/.installed: infra/benchmarks/peers.lock $(STAMP)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade --require-hashes --no-deps --target $(VENV)/peers -r $<
	@touch $@

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; ok = (3, 11) <= v < (3, 14); sys.exit(0 if ok else "backline needs Python 3.11 to 3.13, this is %d.%d: make PYTHON=python3.11" % v)'
	@echo "backline: installing the locked packages into $(VENV) (5.7 GB; about half a minute on a fast network)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv>=0.5"
	@$(BIN)/uv pip install --quiet --require-hashes --python $(BIN)/python -r requirements.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

# Versions and hashes, no addresses.
lock:
	$(BIN)/uv pip compile pyproject.toml --group dev --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --quiet -o requirements.lock

clean:
	rm -rf $(VENV) runs
