# `make demo` and `make test` work on a bare clone: they make a virtual environment in it first (no compiler, no GPU).
PYTHON ?= python3
VENV ?= .venv
OUT ?= demo-out
# Processes that share the tests; one that has done its half takes half of what is left to another.
JOBS ?= auto
# Hostile files that `make fuzz` reads.
FUZZ ?= 10000
BIN := $(VENV)/bin
UV := $(shell uv --version >/dev/null 2>&1 && command -v uv)
INSTALL := $(if $(UV),$(UV) pip install --python $(BIN)/python,$(BIN)/python -m pip install)
TYPED := build/typed/ssmvision

.PHONY: help demo test faults fuzz kernels lint format types wheel clean

help:
	@echo "make demo    train and test a small network on a real brain template; writes $(OUT)/report.html"
	@echo "make test    run the tests (JOBS=n processes, by default one a core)"
	@echo "make faults  inject every fault, write the table tests/faults/FAULTS.md; fails below 90 of 100 points"
	@echo "make fuzz    read FUZZ=$(FUZZ) files with hostile headers"
	@echo "make kernels compile every CUDA kernel that ships for every architecture; needs no GPU"
	@echo "make lint    check style and format; make format mends both"
	@echo "make types   check types (mypy --strict)"
	@echo "make wheel   build the sdist and the wheel into dist/"
	@echo "make clean   remove what the other targets made"

demo: $(VENV)/.installed-demo
	$(BIN)/ssmvision demo --out $(OUT) --overwrite

test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal

faults: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults.score

fuzz: $(VENV)/.installed-dev
	FUZZ=$(FUZZ) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/faults/test_10_header_lies.py

kernels: $(VENV)/.installed-dev
	$(BIN)/ssmvision kernels build --arch sm_80,sm_90,sm_100

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# An editable install maps the four root folders by an import hook that type checkers do not follow; links show them
# the layout that a wheel has.
types: $(VENV)/.installed-dev
	rm -rf $(TYPED)
	mkdir -p $(TYPED)
	ln -s $(CURDIR)/ssmvision/* $(CURDIR)/kernels $(CURDIR)/recipes $(CURDIR)/configs $(TYPED)/
	MYPYPATH=build/typed $(BIN)/mypy -p ssmvision

wheel: $(VENV)/.installed-dev
	rm -rf build/lib build/bdist.* dist
	$(BIN)/python -m build --no-isolation

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# An environment for the tests serves the demo too.
$(VENV)/.installed-demo: pyproject.toml setup.py constraints.txt | $(BIN)/python
	if [ ! $(VENV)/.installed-dev -nt pyproject.toml ]; then $(INSTALL) -c constraints.txt -e '.[demo]'; fi
	touch $@

$(VENV)/.installed-dev: pyproject.toml setup.py constraints.txt | $(BIN)/python
	$(INSTALL) -c constraints.txt -e '.[dev]'
	touch $@
