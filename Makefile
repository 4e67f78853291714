# Everything runs in .venv, made once from pyproject.toml. A torch that the chosen Python already has is kept.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: sweep train tables lab notebooks test test-deep test-all slurm lint wheel bench gpu clean

sweep: $(VENV)/.base
	$(BIN)/python -m saprof.sweep --footprint 3,5,7,9,11

train: $(VENV)/.studies
	$(BIN)/python -m studies.train --model san_mini_pairwise --data digits

tables: $(VENV)/.studies
	$(BIN)/python -m studies.reproduce all --data digits --seeds 6

lab: $(VENV)/.notebooks
	$(BIN)/jupyter lab --ServerApp.root_dir=$(CURDIR) $(if $(filter 0,$(shell id -u)),--allow-root) notebooks/01_operators.ipynb

notebooks: $(VENV)/.notebooks
	$(BIN)/python notebooks/execute.py

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --dist loadfile

# the tests that make test leaves out; README.md says what they are
test-deep: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --dist loadfile -m 'deep and not slurm'

test-all: test test-deep

slurm: $(VENV)/.dev
	$(BIN)/python -m pytest -m slurm tests/studies/test_on_slurm.py

lint: $(VENV)/.dev
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/pyright
	$(BIN)/clang-format --dry-run --Werror kernels_cuda/csrc/* tests/cuda_on_host/*.cpp tests/cuda_on_host/*.h

# setuptools would also pack what an earlier build left in build/
wheel: $(VENV)/.dev
	rm -rf build
	$(BIN)/python -m pip wheel --disable-pip-version-check --no-deps --wheel-dir dist .

bench: $(VENV)/.dev
	$(BIN)/python -m pytest --benchmark-only

gpu: $(VENV)/.dev
	$(BIN)/python tests/on_gpu.py

clean:
	rm -rf $(VENV)

# .venv/constraints.txt is constraints.txt, with the torch that .venv has or sees already instead of its own; the
# torchvision that goes with it is then for pip to find
$(VENV)/constraints.txt: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "saprof needs Python 3.11 or later; $(PYTHON) is " + sys.version.split()[0])'
	@$(PYTHON) -m venv $$($(PYTHON) -c 'import torch' 2>/dev/null && echo --system-site-packages) $(VENV)
	@if torch=$$($(BIN)/python -c 'import torch; print(torch.__version__)' 2>/dev/null); \
	  then echo "keeping torch $$torch"; { grep -v '^torch' $<; echo "torch==$$torch"; } > $@; else cp $< $@; fi

$(VENV)/.base: pyproject.toml $(VENV)/constraints.txt
	$(BIN)/python -m pip install --disable-pip-version-check --constraint $(VENV)/constraints.txt --editable .
	@touch $@

$(VENV)/.studies: $(VENV)/.base
	$(BIN)/python -m pip install --disable-pip-version-check --constraint $(VENV)/constraints.txt --editable '.[studies]'
	@touch $@

$(VENV)/.notebooks: $(VENV)/.base
	$(BIN)/python -m pip install --disable-pip-version-check --constraint $(VENV)/constraints.txt --editable '.[notebooks]'
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	$(BIN)/python -m pip install --disable-pip-version-check --constraint $(VENV)/constraints.txt --editable '.[dev]'
	@touch $@
