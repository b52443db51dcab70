# Two commands do all the set-up on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

export OMP_NUM_THREADS ?= 1
# Lint and the build of GPAW, of one core each, run side by side.
MAKEFLAGS += -j2

.PHONY: help install gpaw cp2k chromium core-mof demo test check lint slurm-test bench docs clean

help:
	@echo "make demo        the main job: a campaign on one machine, with its report (under 20 minutes)"
	@echo "make test        everything, a real SLURM included (under 25 minutes on 2 cores, and 5 for what it installs)"
	@echo "make check       lint, types and the fast tests (under 3 minutes)"
	@echo "make slurm-test  only the tests on a real SLURM that they start themselves"
	@echo "make bench       the benchmarks that have a tiny size, at it"
	@echo "make docs        these pages and the API as a site, into site/"
	@echo "make install     the environment alone, into $(VENV)"

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@echo "setting up $(VENV) (some minutes the first time)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@$(BIN)/python -m mofal.reference.blas
	@touch $@

# GPAW wants MPI and ScaLAPACK (docs/reference.md says why); where it cannot be built the rest goes on.
# The script returns at once when all is there.
gpaw: $(STAMP)
	@sh scripts/gpaw/install.sh $(BIN)/python

# Debian's package; where it cannot be had its tests are skipped and say so. Never for the demo.
cp2k:
	@sh scripts/cp2k/install.sh

# The explorer is tested in a browser; the same.
chromium:
	@sh scripts/chromium/install.sh

# Structure files of other people, which tests read and the demo does without.
core-mof: $(STAMP)
	@$(BIN)/python -m pip show --quiet core-mof 2>/dev/null || \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps core-mof || \
		echo "core-mof could not be installed: the tests on its files are skipped"

demo: $(STAMP)
	$(BIN)/mofal demo

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint
	$(BIN)/python -m pytest -q -n 2 -m "not slow and not slurm and not gpaw"

# By themselves, for they mostly wait; a SLURM of its own for each of the two processes.
SLURM_TEST := $(BIN)/python -m pytest -q -n 2 --dist loadfile tests/slurm

# In the order of tests/conftest.py: long files must not come last.
test: lint gpaw cp2k chromium core-mof
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m "not slurm" --durations=25
	$(SLURM_TEST)

slurm-test: $(STAMP)
	$(SLURM_TEST)

bench: $(STAMP)
	@for b in $$(grep -l -- '"--size"' benchmarks/*.py); do echo "== $$b"; $(BIN)/python $$b --size tiny || exit 1; done

# In an environment of its own: nothing else needs what builds pages.
docs:
	@test -x .venv-docs/bin/mkdocs || { $(PYTHON) -m venv .venv-docs && .venv-docs/bin/python -m pip install \
		--quiet --disable-pip-version-check -c constraints.txt "mkdocs-material>=9.5" "mkdocstrings[python]>=0.30" ruff; }
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict

clean:
	rm -rf demo .pytest_cache .ruff_cache .mypy_cache .hypothesis
