# drivestack: every target sets up .venv by itself and re-installs only when a file that decides about it changed.
#
#   make demo      synthetic scenes, boxes, voxels and lanes, official scores, pictures (runs/demo)
#   make test      the test suite                     make lint     ruff and mypy, as CI runs them
#   make setup     only the environment               make clean    remove builds, caches and runs
#   make speedrun  trains a model from random weights and scores it on the demo's scenes: hours (docs/speedrun.md)
#
#   make openmmlab   mmcv-lite, mmdet, mmseg and mmdet3d into .venv, without a compiler; make test-openmmlab tests them
#   make waymo       Waymo's message classes into .venv, without TensorFlow; make test-waymo tests reading and writing
#   make waymo-official   our Waymo scores beside those of the official package, in an environment of its own
#   make benchmark   operators and models against their peers      make sanitize    CPU kernels under ASan and UBSan
#   make cuda-build  compiles the CUDA kernels, without a GPU      make gpu-check   tests and times them on a GPU
#
# Another Python: make test DRIVESTACK_PYTHON=/path/to/python3.11

SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV := .venv
PYTHON := $(VENV)/bin/python
# The first interpreter that runs, fits pyproject.toml (3.11 or newer) and can make environments.
FITS := import sys, venv, ensurepip; sys.exit(sys.version_info[:2] < (3, 11))
DRIVESTACK_PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.14 python3; do \
	$$p -c "$(FITS)" >/dev/null 2>&1 && { command -v $$p; break; }; done)

# The stamp's name carries the content of what decides the installation, so a branch switch back costs nothing.
INPUTS := pyproject.toml setup.py constraints.txt $(sort $(wildcard ops/csrc/* ops/csrc/*/*))
STAMP := $(VENV)/.installed-$(shell cat $(INPUTS) 2>/dev/null | sha256sum | cut -c1-16)
PIP := $(PYTHON) -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: help setup demo speedrun test lint format clean openmmlab test-openmmlab waymo test-waymo benchmark cuda-build sanitize gpu-check \
	waymo-official

help:
	@sed -n '3,14s/^# \{0,1\}//p' Makefile

$(PYTHON):
	@test -n "$(DRIVESTACK_PYTHON)" || { \
		echo "error: no Python 3.11 or newer with venv found. Debian/Ubuntu: apt install python3 python3-venv python3-dev;"; \
		echo "       elsewhere name one: make $(MAKECMDGOALS) DRIVESTACK_PYTHON=/path/to/python3.11"; exit 1; }
	@echo "Creating $(VENV) with $(DRIVESTACK_PYTHON)"
	@"$(DRIVESTACK_PYTHON)" -m venv $(VENV)

$(STAMP): | $(PYTHON)
	@set -e; SECONDS=0; \
	command -v $${CXX:-c++} >/dev/null 2>&1 || \
		echo "note: no C++ compiler: the operators will run slowly, in PyTorch (apt install g++, then make clean setup)"; \
	echo "Installing torch and the build tools (several GB on the first time, minutes)"; \
	$(PIP) pip setuptools wheel ninja torch torchvision numpy; \
	echo "Installing drivestack and its C++ operators"; \
	$(PIP) --no-build-isolation --editable '.[dev]'; \
	$(PIP) --no-deps nuscenes-devkit; \
	rm -f $(VENV)/.installed-*; touch $@; \
	echo "Environment ready after $$SECONDS s, $$(du -sh $(VENV) | cut -f1) on disk"

setup: $(STAMP)
	@echo "Ready: $(VENV)/bin/drivestack --help"

demo: $(STAMP)
	@SECONDS=0; $(VENV)/bin/drivestack demo --out runs/demo && \
		echo "make demo: $$SECONDS s after set-up, runs/demo $$(du -sh runs/demo | cut -f1), $(VENV) $$(du -sh $(VENV) | cut -f1)"

speedrun: $(STAMP)
	@$(PYTHON) benchmarks/speedrun.py $(SPEEDRUN_ARGS)

# mypy knows the package by its name, whatever this folder is called; the link lies in mypy's own cache.
LINK := mkdir -p .mypy_cache/package && ln -sfn ../.. .mypy_cache/package/drivestack

# ARGS passes options on: make test ARGS='tests/ops -x'
test: $(STAMP)
	@$(PYTHON) -m pytest $(ARGS)

lint: $(STAMP)
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(LINK)
	@$(VENV)/bin/mypy

format: $(STAMP)
	@$(VENV)/bin/ruff check --fix .
	@$(VENV)/bin/ruff format .

# --no-deps: what the packages ask for would overwrite onedl-mmengine and opencv-python-headless (docs/openmmlab.md).
OPENMMLAB := requirements-openmmlab.txt
OPENMMLAB_STAMP := $(VENV)/.openmmlab-$(shell cat $(OPENMMLAB) compat/mmcv_ext.py 2>/dev/null | sha256sum | cut -c1-16)
$(OPENMMLAB_STAMP): | $(STAMP)
	@set -e; SECONDS=0; \
	$(PIP) --no-deps --only-binary :all: --requirement $(OPENMMLAB); \
	$(PYTHON) -c "from drivestack.compat.mmcv_ext import write_module; write_module()"; \
	$(PYTHON) -W ignore -c "import mmcv.ops, mmdet.models, mmseg.models, mmdet3d.models"; \
	rm -f $(VENV)/.openmmlab-*; touch $@; \
	echo "OpenMMLab ready after $$SECONDS s. 'pip check' names requirements that were left out on purpose: docs/openmmlab.md"

openmmlab: $(OPENMMLAB_STAMP)

test-openmmlab: $(OPENMMLAB_STAMP)
	@DRIVESTACK_REQUIRE_OPENMMLAB=1 $(PYTHON) -m pytest tests/openmmlab $(ARGS)

# --no-deps: the package asks for TensorFlow 2.13 and NumPy 1.23, which its message classes do not need.
WAYMO_STAMP := $(VENV)/.waymo-$(shell cat requirements-waymo.txt 2>/dev/null | sha256sum | cut -c1-16)
$(WAYMO_STAMP): | $(STAMP)
	@set -e; SECONDS=0; \
	$(PIP) --no-deps --only-binary :all: --requirement requirements-waymo.txt; \
	$(PYTHON) -c "from waymo_open_dataset import dataset_pb2; import pyarrow.parquet"; \
	rm -f $(VENV)/.waymo-*; touch $@; \
	echo "Waymo's message classes ready after $$SECONDS s. 'pip check' names requirements that were left out on purpose"

waymo: $(WAYMO_STAMP)

test-waymo: $(WAYMO_STAMP)
	@DRIVESTACK_REQUIRE_WAYMO=1 $(PYTHON) -m pytest tests/data_tools/waymo tests/data_tools/test_formats.py tests/cli/test_waymo.py tests/bev/evaluation/test_waymo_wire.py $(ARGS)

benchmark: $(STAMP)
	@$(PYTHON) benchmarks/operators.py $(ARGS)
	@$(PYTHON) benchmarks/models.py

define CHECK_CUDA
import torch
from drivestack.ops.dispatch.backend import extension
library = extension("cuda")
if library.reason:
    raise SystemExit(f"error: {library.reason}")
held = set(torch._C._dispatch_get_registrations_for_dispatch_key("CUDA"))
operators = ("dcnv3", "ms_deform_attn", "ms_deform_attn_fused", "spatial_cross_attention")
missing = {f"drivestack::{name}{suffix}" for name in operators for suffix in ("", "_backward")} - held
if missing:
    raise SystemExit(f"error: {library.path} lacks {sorted(missing)}")
print(f"{library.path} loads and holds all operators, compiled for sm {library.variant}")
endef
export CHECK_CUDA

# Waymo's own metric, which needs TensorFlow 2.13 and numpy 1.23 (Python 3.8 to 3.11), in an environment of its own, 2.5
# GB; pip older than 26 searches its requirements for half an hour. ARGS='--submission FILE --dataroot D' judges a file.
WAYMO_VENV := .venv-waymo
WAYMO_PYTHON ?= $(shell for p in python3.10 python3.11 python3.9 python3.8; do \
	$$p -c "import venv, ensurepip" >/dev/null 2>&1 && { command -v $$p; break; }; done)
$(WAYMO_VENV)/.installed:
	@test -n "$(WAYMO_PYTHON)" || { echo "error: Waymo's package needs Python 3.8 to 3.11: make $(MAKECMDGOALS) WAYMO_PYTHON=/path/to/python3.10"; exit 1; }
	@SECONDS=0; "$(WAYMO_PYTHON)" -m venv $(WAYMO_VENV) && $(WAYMO_VENV)/bin/python -m pip install -q -U 'pip>=26' && \
		$(WAYMO_VENV)/bin/python -m pip install -q waymo-open-dataset-tf-2-12-0==1.6.7 'setuptools<81' && touch $@ && \
		echo "$(WAYMO_VENV) ready after $$SECONDS s, $$(du -sh $(WAYMO_VENV) | cut -f1) on disk"

waymo-official: $(STAMP) $(WAYMO_VENV)/.installed
	@$(PYTHON) benchmarks/waymo_official.py --python $(WAYMO_VENV)/bin/python $(ARGS)

# Two architectures, the oldest and the newest; the library must load and hold a kernel for every operator.
CUDA_FOLDER := build/cuda/drivestack/ops
cuda-build: $(STAMP)
	@rm -rf build/cuda
	@DRIVESTACK_CUDA=1 TORCH_CUDA_ARCH_LIST="$${TORCH_CUDA_ARCH_LIST:-7.5;12.0}" \
		$(PYTHON) setup.py -q build_ext --build-lib build/cuda
	@DRIVESTACK_OPS_FOLDER=$(CUDA_FOLDER) $(PYTHON) -c "$$CHECK_CUDA"

# libstdc++ is loaded early because the interpreter does not link it and ASan wraps its exceptions.
SANITIZE := -fsanitize=address,undefined -fno-sanitize-recover=undefined
SANITIZE_TESTS := $(wildcard $(foreach name,dcnv3 ms_deform_attn spatial_cross norm backend instruction,tests/ops/test_$(name)*.py))
SANITIZED := LD_PRELOAD="$$($${CXX:-c++} -print-file-name=libasan.so) $$($${CXX:-c++} -print-file-name=libstdc++.so.6)" \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
	DRIVESTACK_OPS_FOLDER=build/sanitize/drivestack/ops DRIVESTACK_OPS_BACKEND=cpp
sanitize: $(STAMP)
	@DRIVESTACK_CXXFLAGS="$(SANITIZE) -O1 -g1 -fno-omit-frame-pointer" LDFLAGS="$(SANITIZE)" DRIVESTACK_CUDA=0 \
		$(PYTHON) setup.py -q build_ext --build-lib build/sanitize --build-temp build/sanitize/objects
	@$(SANITIZED) $(PYTHON) -c "from drivestack.ops.dispatch.backend import extension; assert not extension().reason, extension()"
	@$(SANITIZED) $(PYTHON) -m pytest -q --capture=sys --durations=3 -k "not reference" $(or $(ARGS),$(SANITIZE_TESTS))

# A machine that brings its own torch with a GPU is used as it is: no environment, no download.
gpu-check:
	@if [ ! -x $(PYTHON) ] && python3 -c "import torch; raise SystemExit(not torch.cuda.is_available())" 2>/dev/null; \
	then python=python3; else $(MAKE) --no-print-directory setup; python=$(PYTHON); fi; \
	$$python benchmarks/gpu_check.py $(ARGS)

clean:
	rm -rf build dist runs .pytest_cache .ruff_cache .mypy_cache .hypothesis *.egg-info ops/*.so ops/_build.json $(VENV)/.installed-* $(VENV)/.openmmlab-* $(VENV)/.waymo-*
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
