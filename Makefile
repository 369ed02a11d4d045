# Needs only make and Python >= 3.10; everything else goes into .venv. `make help` lists the targets.
#
#   make test PYTHON=python3.12      another Python: .venv is made anew for it
#   make test ARGS="-k masks -x"     arguments for pytest (also: bench, demo)
#   make test JOBS=4                 test processes, one thread each
#   make bench BENCH=inverse         one benchmark: a module of benchmarks/

PYTHON ?= python3
JOBS ?= 2
ARGS ?=
SECONDS ?= 3600
BENCH ?= $(filter-out harness,$(basename $(notdir $(wildcard benchmarks/[!_]*.py))))

VENV := .venv
PY := $(VENV)/bin/python
IDENTITY_FILE := $(VENV)/made-flows.stamp
STAMP := $(VENV)/dev.stamp
DEMO_STAMP := $(VENV)/demo.stamp
STEP = $(PY) tools/step.py

# Both, because pip before 25.3 reads the first for what a build needs and pip after it the second.
# The path is relative: pip splits these variables at blanks, and a folder's name may have some.
export PIP_CONSTRAINT := constraints.txt
export PIP_BUILD_CONSTRAINT := constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# The file names the Python and the place that .venv was made for. Where it says something else, or
# where .venv's Python does not run, .venv is broken (interrupted, copied, moved, Python gone).
IDENTITY := $(shell $(PYTHON) -c 'import os, sys; print(sys.version.split()[0], os.getcwd())')
HEALTHY := $(shell $(PY) -c 'import pip' >/dev/null 2>&1 && cat $(IDENTITY_FILE) 2>/dev/null)
ifeq ($(IDENTITY),)
$(error Expected PYTHON to name a Python 3.10 or newer; '$(PYTHON)' does not run)
endif

.PHONY: all demo test versions clients fuzz lint format types doctest docs packages bench clean help venv broken
.DEFAULT_GOAL := help

help:
	@echo 'make demo      fit density models to real data; a minute or two'
	@echo 'make test      all tests'
	@echo 'make versions  a part of the tests with the lowest and the newest dependencies; some minutes'
	@echo 'make clients   programs of other libraries, as they are and accelerated; a minute'
	@echo 'make fuzz      random models against a second way to compute them; an hour (SECONDS=600)'
	@echo 'make lint      ruff: rules and format;   make format repairs what can be repaired'
	@echo 'make types     mypy, strict'
	@echo 'make doctest   the examples in docstrings, README, CONTRIBUTING and docs'
	@echo 'make docs      the documentation, into site/'
	@echo 'make packages  wheel and sdist: built, installed, and the code of README run'
	@echo 'make bench     the benchmarks, into docs/benchmarks/ (long); one: make bench BENCH=inverse'
	@echo 'make all       lint, types, doctest, docs, packages, test, demo'
	@echo 'make clean     remove .venv and everything else that was made'

all: lint types doctest docs packages test demo
	@echo 'make all: done'

# --- Environment ---------------------------------------------------------------------------------

venv: $(STAMP)

ifeq ($(HEALTHY),$(IDENTITY))
QUIET := --quiet # hardly anything changes: do not list what is there already
else
$(IDENTITY_FILE): broken
endif
$(IDENTITY_FILE):
	@$(PYTHON) -c 'import sys; v = sys.version_info; \
	  sys.exit(v < (3, 10) and "Expected PYTHON to be 3.10 or newer; got %d.%d" % v[:2])'
	$(PYTHON) -m venv --clear $(VENV)
	$(PY) -m pip install --upgrade pip
	@echo '$(IDENTITY)' > $@

# A stamp stands for the extra of its name: the demo needs less than the developers' tools.
$(VENV)/%.stamp: $(IDENTITY_FILE) pyproject.toml constraints.txt
	@echo 'make venv: installing into $(VENV) (some minutes the first time) ...'
	@rm -f $@
	$(PY) -m pip install $(QUIET) --no-compile --editable '.[$*]'
	@# As pip would, with more than one core, and without the libraries' own tests.
	@$(PY) -m compileall -q -j $(JOBS) -x '/tests?/' $(VENV)/lib >/dev/null 2>&1 || true
	@touch $@
	@echo 'make venv: ready'

# --- Targets -------------------------------------------------------------------------------------

demo: $(or $(wildcard $(STAMP)),$(DEMO_STAMP)) # developers have what it needs
	@$(STEP) --note 'open demo_output/index.html' 'make demo' \
	  $(PY) examples/demo.py $(ARGS)

# One thread for each process: more than one slows small tensors down and fights over the cores.
test: $(STAMP)
	@OMP_NUM_THREADS=1 $(STEP) --junit $(VENV)/test-report.xml 'make test' \
	  $(PY) -m pytest -n $(JOBS) --junitxml=$(VENV)/test-report.xml $(ARGS)

versions: $(IDENTITY_FILE) # its own environments have the rest
	@$(STEP) 'make versions (lowest)' $(PY) -m tools.check_versions lowest
	@$(STEP) 'make versions (newest)' $(PY) -m tools.check_versions newest

clients: $(VENV)/clients.stamp
	@$(STEP) 'make clients' env MADE_FLOWS_CLIENTS=1 OMP_NUM_THREADS=1 \
	  $(PY) -m pytest tests/clients -s $(ARGS)

fuzz: $(STAMP)
	@OMP_NUM_THREADS=1 MADE_FLOWS_FUZZ_SECONDS=$(SECONDS) $(STEP) --note 'no difference found' \
	  'make fuzz' $(PY) -m pytest -q -s tests/test_fuzz.py -k as_long_as_asked $(ARGS)

lint: $(STAMP)
	@$(STEP) 'make lint (rules)' $(PY) -m ruff check .
	@$(STEP) 'make lint' $(PY) -m ruff format --check .

format: $(STAMP)
	@$(PY) -m ruff check --fix-only .
	@$(STEP) 'make format' $(PY) -m ruff format .

types: $(STAMP)
	@$(STEP) 'make types' $(PY) -m mypy

doctest: $(STAMP)
	@OMP_NUM_THREADS=1 $(STEP) 'make doctest (documents)' \
	  $(PY) tools/run_documents.py --jobs $(JOBS) README.md CONTRIBUTING.md docs
	@OMP_NUM_THREADS=1 $(STEP) --junit $(VENV)/doctest-report.xml 'make doctest' \
	  $(PY) -m pytest -n $(JOBS) --doctest-modules --junitxml=$(VENV)/doctest-report.xml made_flows \
	  $$($(PY) -c 'import triton' 2>/dev/null || echo --ignore=made_flows/inverse/gpu)

docs: $(STAMP)
	@NO_MKDOCS_2_WARNING=true $(STEP) --note 'open site/index.html' 'make docs' \
	  $(PY) -m mkdocs build --strict --clean

packages: $(STAMP)
	@OMP_NUM_THREADS=1 $(STEP) 'make packages' $(PY) tools/check_packages.py

bench: $(STAMP)
	@set -e; for name in $(BENCH); do \
	  $(STEP) --note 'tables are in docs/benchmarks/' "make bench ($$name)" \
	    $(PY) -m benchmarks.$$name $(ARGS); \
	done
	@echo 'make bench: done: $(BENCH)'

clean:
	@rm -rf $(VENV) $(VENV)-lowest $(VENV)-newest site dist build demo_output .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
	@echo 'make clean: removed .venv and everything else that was made'
