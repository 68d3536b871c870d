# The tangent-kernel book. `make help` lists the commands; all they need is Python 3.11 and make.
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= $(shell command -v python3.11 || command -v python3)
PY := .venv/bin/python
PORT ?= 8000
PAGE := _build/html/index.html
CHAPTERS := $(wildcard notebooks/*.ipynb)

# BLAS does not follow torch's thread setting, and two processes that both want every core stall
# each other. So each of the parallel workers gets its share of the cores, and no more.
CORES := $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
share = $(shell n=$$(( $(CORES) / $(1) )); echo $$(( n > 0 ? n : 1 )))
threads = OMP_NUM_THREADS=$(1) OPENBLAS_NUM_THREADS=$(1) MKL_NUM_THREADS=$(1)
least = $(shell echo $$(( $(1) < $(2) ? $(1) : $(2) )))
TEST_WORKERS := $(call least,$(CORES),4)
BOOK_WORKERS := $(call least,$(TEST_WORKERS),$(or $(filter-out 0,$(words $(CHAPTERS))),1))

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' Makefile

book: setup ## run what is stale, build the book, say where it is
	@$(PY) book/_tools/chapters.py run --stale
	@FORCE=$(FORCE) $(PY) book/_tools/once.py book -- $(MAKE) build
	@echo "The book: $(PAGE)"

test: setup ## all tests, all chapters, all checks of the book
	@FORCE=$(FORCE) $(PY) book/_tools/once.py test -- $(MAKE) checks

unit: setup ## the package's tests alone
	@$(call threads,$(call share,$(TEST_WORKERS))) $(PY) -m pytest -n $(TEST_WORKERS) tests --ignore=tests/book

run: setup ## execute every chapter anew
	@$(PY) book/_tools/chapters.py run --all

checkpoints: setup ## train the networks that chapters read from files, where out of date
	@$(PY) book/_tools/checkpoints.py

trigger: setup ## the full study of planted triggers; goes on where it was stopped
	@$(PY) book/_tools/trigger.py

gemma: setup ## grammar in google/gemma-3-270m itself, for which a GPU and its licence are needed
	@$(PY) -m pip install -qq -c requirements.txt --no-build-isolation -e '.[gemma]'
	@$(PY) -m entk_helpers.language --download --out _build/gemma
	@ENTK_LANGUAGE_RESULTS="$(CURDIR)/_build/gemma" $(PY) book/_tools/chapters.py run 07_grammar

portable: setup ## what comes out under the arithmetic of other processors (an hour)
	@$(PY) book/_tools/portable.py

bench: setup .venv-jax/.ready ## measure against other tools; STORE=1 keeps it for the book's page
	@$(PY) -m benchmarks $(if $(STORE),--json notebooks/data/10_benchmarks/bench.json)

serve: book ## show the built book at localhost:8000 (or PORT=...)
	@$(PY) -m http.server --bind localhost --directory _build/html $(PORT)

lint: setup ## style of the code; order of its imports; pairs, figures and headings of the book
	@$(PY) -m ruff check --quiet .
	@$(PY) -m ruff format --quiet --check . || { echo "run: $(PY) -m ruff format ."; exit 1; }
	@$(PY) book/_tools/architecture.py check
	@$(PY) book/_tools/chapters.py check

architecture: setup ## draw the picture of the package from its imports
	@$(PY) book/_tools/architecture.py

lock: setup ## pin every dependency of pyproject.toml in requirements.txt
	@$(PY) book/_tools/lock.py

audit: ## look for known holes in what requirements.txt pins; needs the network
	@test -x _build/audit/bin/pip-audit || { rm -rf _build/audit && $(PYTHON) -m venv _build/audit && \
	    _build/audit/bin/python -m pip install -qq pip-audit; } || \
	    { echo "pip-audit could not be installed; is there a network?"; exit 1; }
	@_build/audit/bin/pip-audit --version >/dev/null && \
	    _build/audit/bin/pip-audit --disable-pip --no-deps -r requirements.txt || \
	    { echo "Not clean, or the vulnerability service could not be reached: see above."; exit 1; }

clean: ## remove what was built; the environment too with ALL=1
	@rm -rf _build .pytest_cache .ruff_cache .hypothesis *.egg-info $(if $(ALL),.venv .venv-jax)
	@find . -name __pycache__ -not -path './.venv*/*' -prune -exec rm -rf {} +

# ---- the steps behind these, not for calling by hand

setup: .venv/.ready

# The file .venv/.begun marks a set-up that was cut off; the next one then starts afresh.
.venv/.ready: requirements.txt pyproject.toml
	@test -n "$(PYTHON)" && $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "Python 3.11 or newer is needed; name it with: make PYTHON=/path/to/python"; exit 1; }
	@echo "Setting up .venv from requirements.txt (once; a few minutes) ..."
	@if test -e .venv/.begun; then rm -rf .venv; fi
	@mkdir -p .venv && touch .venv/.begun
	@$(PYTHON) -m venv .venv
	@$(PY) -m pip install -qq -r requirements.txt
	@$(PY) -m pip install -qq --no-deps --no-build-isolation -e .
	@# curvlinops asks for torchvision, through a module that it never imports; one that does not
	@# fit the build of torch at hand breaks transformers.
	@$(PY) -m pip uninstall -qq -y torchvision
	@rm .venv/.begun && touch $@

# For one row of `make bench`: neural-tangents needs an old jax. Where that cannot be had, there is
# no .ready, the benchmark says so, and the next `make bench` tries again.
.venv-jax/.ready: benchmarks/neural_tangents.txt
	@echo "Setting up .venv-jax for neural-tangents (once; a minute) ..."
	@rm -rf .venv-jax && mkdir .venv-jax
	@{ $(PYTHON) -m venv .venv-jax && .venv-jax/bin/python -m pip install --no-deps -r $< && \
	    .venv-jax/bin/python -m benchmarks._neural_tangents; } >.venv-jax/log 2>&1 && touch $@ || true

checks: lint
	@$(call threads,$(call share,$(TEST_WORKERS))) $(PY) -m pytest -n $(TEST_WORKERS) tests
	@$(PY) book/_tools/portable.py --short
	@rm -rf _build/claims && mkdir -p _build/claims
	@$(if $(CHAPTERS),$(call threads,$(call share,$(BOOK_WORKERS))) ENTK_PROGRESS=off \
	    ENTK_CLAIMS_DIR="$(CURDIR)/_build/claims" $(PY) -m pytest -p no:python \
	    --nbval-lax --nbval-current-env --nbval-cell-timeout=600 \
	    --nbval-sanitize-with tests/nbval_sanitize.cfg \
	    -n $(BOOK_WORKERS) --dist loadscope $(CHAPTERS))
	@$(PY) book/_tools/chapters.py claims _build/claims
	@$(MAKE) build

# From scratch each time: Sphinx does not repeat the warnings of pages that it has already read.
build:
	@rm -rf _build/html _build/.doctrees _build/.jupyter_cache
	@.venv/bin/jupyter-book build . -n -W --keep-going -q
	@$(PY) book/_tools/pages.py

.PHONY: help book test unit run checkpoints trigger gemma portable bench serve lint architecture lock audit clean setup \
    checks build
