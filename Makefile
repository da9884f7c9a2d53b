# `make demo` first, `make test` second; both make .venv if need be, and use only that.
# Another Python: make test PYTHON=python3.12

PYTHON ?= python3
LOCK_PYTHONS ?= python3.11 python3.12

# Paths are relative and tools run as modules: a folder with spaces in its name works.
VENV := .venv
RUN := $(VENV)/bin/python
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
# One stamp for each Python version: another PYTHON makes .venv anew.
STAMP := $(VENV)/.installed-$(VERSION)
PIP := $(RUN) -m pip --disable-pip-version-check
# What pip says: named before, shown if it fails.
PIP_LOG := $(VENV)/pip.log
PATCHES := 1x1,2x2,3x3,4x4,5x5,6x6,7x7,8x8

.DEFAULT_GOAL := help
.PHONY: help venv demo test lint docs docs-figures lock clean

help:
	@echo 'make demo   train on 5,000 real MNIST images, certify, print the table (runs/demo)'
	@echo 'make test   linter, formatter, type checker, all tests'
	@echo 'make lint   the same without the tests'
	@echo 'make docs   documentation into build/docs; an undocumented public name fails'
	@echo 'make venv   only .venv, from the tested versions of requirements.lock'
	@echo 'make lock   rewrite requirements.lock (needs: $(LOCK_PYTHONS))'
	@echo 'make clean  remove .venv and caches; runs/ stays'

venv: $(STAMP)
	@echo '$(VENV) is ready: Python $(VERSION)'

demo: $(STAMP)
	$(RUN) train.py --config=configs/mnist5k_columns.py --workdir=runs/demo
	$(RUN) certify.py --workdir=runs/demo --patches=$(PATCHES)

# Compiled programs are kept between runs: a second `make test` compiles little. Test
# files are shared out over the cores, four at most: each process takes up to 4 GB.
test: export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.cache/jax
test: export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS ?= 0
test: lint
	$(RUN) -m pytest -n auto --maxprocesses 4 --dist loadfile

lint: $(STAMP)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

docs: $(STAMP)
	$(RUN) -m sphinx -W --keep-going -q -b html docs build/docs
	@echo 'build/docs/index.html'

# The figures of the tutorial are those of `make demo`.
docs-figures: demo
	cp runs/demo/certify/test/*.svg docs/figures/

lock:
	$(PYTHON) scripts/lock.py $(LOCK_PYTHONS)

clean:
	rm -rf $(VENV) .cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp older than a requirement updates what is there; no stamp starts from nothing.
$(STAMP): requirements.lock requirements.txt pyproject.toml
	@$(PYTHON) -c '' 2>/dev/null || { \
	  echo 'error: PYTHON=$(PYTHON) does not run; install Python 3.11 or 3.12, or name one: make PYTHON=/path/to/python3.12' >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo 'error: PYTHON=$(PYTHON) is Python $(VERSION), 3.11 or later is needed; name one: make PYTHON=/path/to/python3.12' >&2; exit 1; }
	@test -e $@ || $(PYTHON) -m venv --clear $(VENV) >/dev/null 2>&1 || { \
	  echo 'error: "$(PYTHON) -m venv $(VENV)" failed; run it to see why (on Debian and Ubuntu it needs: apt install python3-venv)' >&2; exit 1; }
	@: >$(PIP_LOG); case $(VERSION) in \
	  3.11|3.12) from=requirements.lock; \
	    echo 'Python $(VERSION): installing the tested versions of requirements.lock into $(VENV), about a minute ($(PIP_LOG))' ;; \
	  *) from=$(VENV)/direct.txt; \
	    echo 'Python $(VERSION) has no tested lock (3.11 and 3.12 have): installing the newest that requirements.txt and the extras allow into $(VENV), minutes ($(PIP_LOG))'; \
	    $(RUN) scripts/lock.py --direct >$$from ;; \
	esac && $(PIP) install -r $$from >$(PIP_LOG) 2>&1 || { cat $(PIP_LOG) >&2; \
	  echo 'error: pip could not install into $(VENV) (its message is above, and in $(PIP_LOG)); mend that and run make again' >&2; exit 1; }
	@touch $@
