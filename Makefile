# Everything there is to type in this project. `make` alone lists it.
# All targets work in a virtual environment of their own (VENV), filled from a lock file with hashes.

PYTHON ?= python3
VENV ?= .venv
PEERS ?= .venv-peers
LLAMAINDEX ?= .venv-llamaindex
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check install --quiet
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo serve test check format bench clients torture fuzz lock

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / { printf "  %-11s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: $(VENV)/dev.stamp ## make the environment for development

demo: $(VENV)/run.stamp ## start a gateway with a built-in model and spend its prepaid money, without any key
	$(BIN)/penstock demo $(ARGS)

serve: $(VENV)/run.stamp ## start the gateway; prints its address, a key and a command to try
	$(BIN)/penstock serve --sample $(ARGS)

# Hundreds of processes are started in a run; each would compile what it imports if none could leave it to the others.
test: $(VENV)/dev.stamp ## run the tests on all cores; ARGS="-k name" goes to pytest
	env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pytest --numprocesses=auto $(ARGS)

check: $(VENV)/dev.stamp ## check format, lint, types and the import direction
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/dev.stamp ## format the code and mend what the linter can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/dev.stamp ## measure throughput and latency on this machine
	$(BIN)/python -m bench $(ARGS)

bench-peers: $(VENV)/dev.stamp $(PEERS)/peers.stamp ## measure beside LiteLLM, installed in an environment of its own
	$(BIN)/python -m bench --only plain,burst --peers $(PEERS) $(ARGS)

clients: $(VENV)/dev.stamp $(LLAMAINDEX)/llamaindex.stamp ## run the page of a client that needs an environment of its own
	PENSTOCK_LLAMAINDEX_PYTHON=$(CURDIR)/$(LLAMAINDEX)/bin/python $(BIN)/python -m pytest tests/docs/test_llamaindex.py $(ARGS)

torture: $(VENV)/dev.stamp ## flood, kill and cut real gateways, and hold them to what their upstream kept
	$(BIN)/python -m torture $(ARGS)

fuzz: $(VENV)/dev.stamp $(VENV)/fuzz.stamp ## fuzz by coverage, a minute a target; ARGS="--seconds 300 stream" is other
	PYTHONPATH=$(VENV)/fuzz $(BIN)/python -m fuzz $(ARGS)

# The run lock is constrained by the development lock, so one environment serves both and tests run what users run.
LOCK := $(BIN)/uv pip compile pyproject.toml --group build
lock: $(VENV)/dev.stamp ## write the lock files anew from pyproject.toml; ARGS=--upgrade takes newer versions
	$(LOCK) --extra dev -o requirements/dev.lock $(ARGS) >/dev/null
	$(LOCK) --extra demo -c requirements/dev.lock -o requirements/run.lock $(ARGS) >/dev/null
	$(BIN)/uv pip compile requirements/fuzz.in -o requirements/fuzz.lock $(ARGS) >/dev/null

# A stamp is newer than what it was made from, so nothing is installed twice. Building the package uses the locked
# hatchling: without build isolation no code arrives that no hash covers.
$(VENV)/%.stamp: requirements/%.lock pyproject.toml | $(BIN)/pip
	@echo "Installing $< into $(VENV) (once; about a minute)"
	@$(PIP) --require-hashes -r $<
	@$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

# The fuzzer lies beside the environment, not in it: nothing that tests or users run can come to need it.
$(VENV)/fuzz.stamp: requirements/fuzz.lock | $(BIN)/pip
	@$(PIP) --upgrade --target $(VENV)/fuzz --require-hashes -r $<
	@touch $@

# What is measured beside the gateway is not part of it: pinned, but without a lock, and in no other environment.
$(PEERS)/peers.stamp: bench/peers.txt | $(BIN)/pip
	@echo "Installing $< into $(PEERS) (once; a minute or two)"
	@$(PYTHON) -m venv $(PEERS)
	@$(PEERS)/bin/pip --disable-pip-version-check install --quiet -r $<
	@touch $@

$(LLAMAINDEX)/llamaindex.stamp: requirements/llamaindex.txt | $(BIN)/pip
	@$(PYTHON) -m venv $(LLAMAINDEX)
	@$(LLAMAINDEX)/bin/pip --disable-pip-version-check install --quiet -r $<
	@touch $@

# bin/pip is the last thing that venv writes, so a half-made environment is made again.
$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "Python cannot make virtual environments. On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
