# `make demo` and `make test` work from nothing on a machine with Python 3.11 or newer and make.
PYTHON ?= python3
JOBS ?= 2
BIN := .venv/bin
INSTALLED := .venv/.installed
DATA := data/fashion-mnist/.fetched

.PHONY: demo test test-long lint format docs browser clean

demo: $(INSTALLED) $(DATA)  ## Run the quickstart sweep: a scaling law in a few minutes on two cores.
	$(BIN)/ditlaw run sweeps/quickstart.yaml

test: $(INSTALLED) $(DATA)  ## Run every test that this machine can run.
	$(BIN)/pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

test-long: $(INSTALLED) $(DATA)  ## Also those that take minutes each: nodes, heads and disks that fail.
	$(BIN)/pytest --long

lint: $(INSTALLED)  ## Check style and types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)  ## Put the code into shape.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(INSTALLED)  ## Build the documentation into build/site.
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

browser:  ## Install what the tests in a browser need, beside Node and Chromium.
	cd tests/browser && npm install --no-package-lock --no-audit --no-fund

clean:  ## Remove what was installed and built; results and data are kept.
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache

$(DATA): | $(INSTALLED)
	$(BIN)/ditlaw data fetch fashion-mnist
	@touch $@

$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer with venv is needed; on Debian: apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	@echo "Installing from requirements.lock; about three minutes."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --use-pep517 -r requirements.lock
	@# mup and torch-fidelity, oracles of the tests, would bring torchvision and with it another torch.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e . mup==1.0.0 torch-fidelity==0.4.0
	@touch $@
