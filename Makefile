# drivestack: every target sets up .venv by itself and re-installs only when a file that decides about it changed.
#
#   make demo      synthetic scenes, 3D boxes, official evaluation, pictures (runs/demo)
#   make test      the test suite                     make lint     ruff, as CI runs it
#   make setup     only the environment               make clean    remove builds, caches and runs
#
# Another Python: make test DRIVESTACK_PYTHON=/path/to/python3.11

SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV := .venv
PYTHON := $(VENV)/bin/python
# The first interpreter that runs, fits pyproject.toml (3.11 or 3.12) and can make environments.
FITS := import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))
DRIVESTACK_PYTHON ?= $(shell for p in python3.11 python3.12 python3; do \
	$$p -c "$(FITS)" >/dev/null 2>&1 && { command -v $$p; break; }; done)

# The stamp's name carries the content of what decides the installation, so a branch switch back costs nothing.
INPUTS := pyproject.toml setup.py constraints.txt $(sort $(wildcard ops/csrc/* ops/csrc/*/*))
STAMP := $(VENV)/.installed-$(shell cat $(INPUTS) 2>/dev/null | sha256sum | cut -c1-16)
PIP := $(PYTHON) -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: help setup demo test lint format clean

help:
	@sed -n '3,7s/^# \{0,1\}//p' Makefile

$(PYTHON):
	@test -n "$(DRIVESTACK_PYTHON)" || { \
		echo "error: no Python 3.11 or 3.12 with venv found. Debian/Ubuntu: apt install python3 python3-venv python3-dev;"; \
		echo "       elsewhere name one: make $(MAKECMDGOALS) DRIVESTACK_PYTHON=/path/to/python3.11"; exit 1; }
	@echo "Creating $(VENV) with $(DRIVESTACK_PYTHON)"
	@"$(DRIVESTACK_PYTHON)" -m venv $(VENV)

$(STAMP): | $(PYTHON)
	@set -e; SECONDS=0; \
	command -v $${CXX:-c++} >/dev/null 2>&1 || \
		echo "note: no C++ compiler: the slow PyTorch operators will serve (apt install g++, then make clean setup)"; \
	echo "Installing torch and the build tools (several GB on the first time, minutes)"; \
	$(PIP) pip setuptools wheel ninja torch torchvision numpy; \
	echo "Installing drivestack and its C++ operators"; \
	$(PIP) --no-build-isolation --editable '.[dev]'; \
	rm -f $(VENV)/.installed-*; touch $@; \
	echo "Environment ready after $$SECONDS s, $$(du -sh $(VENV) | cut -f1) on disk"

setup: $(STAMP)
	@echo "Ready: $(VENV)/bin/drivestack --help"

demo: $(STAMP)
	@SECONDS=0; $(VENV)/bin/drivestack demo --out runs/demo && \
		echo "make demo: $$SECONDS s after set-up, runs/demo $$(du -sh runs/demo | cut -f1), $(VENV) $$(du -sh $(VENV) | cut -f1)"

# ARGS passes options on: make test ARGS='tests/ops -x'
test: $(STAMP)
	@$(PYTHON) -m pytest $(ARGS)

lint: $(STAMP)
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .

format: $(STAMP)
	@$(VENV)/bin/ruff check --fix .
	@$(VENV)/bin/ruff format .

clean:
	rm -rf build dist runs .pytest_cache .ruff_cache .hypothesis *.egg-info ops/*.so $(VENV)/.installed-*
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
