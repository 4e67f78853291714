# Everything runs in .venv, made once from pyproject.toml. A torch that the chosen Python already has is kept.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: sweep test lint bench clean

sweep: $(VENV)/.base
	$(BIN)/python -m saprof.sweep --footprint 3,5,7,9,11

test: $(VENV)/.dev
	$(BIN)/python -m pytest

lint: $(VENV)/.dev
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/pyright

bench: $(VENV)/.dev
	$(BIN)/python -m pytest --benchmark-only

clean:
	rm -rf $(VENV)

# .venv/constraints.txt is constraints.txt, less its torch where the environment sees one already
$(VENV)/constraints.txt: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "saprof needs Python 3.11 or later; $(PYTHON) is " + sys.version.split()[0])'
	@if $(PYTHON) -c 'import torch' 2>/dev/null; then \
	  echo "keeping the torch of $(PYTHON)"; \
	  $(PYTHON) -m venv --system-site-packages $(VENV) && grep -v '^torch==' $< > $@; \
	else \
	  $(PYTHON) -m venv $(VENV) && cp $< $@; \
	fi

$(VENV)/.base: pyproject.toml $(VENV)/constraints.txt
	$(BIN)/python -m pip install --disable-pip-version-check --constraint $(VENV)/constraints.txt --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	$(BIN)/python -m pip install --disable-pip-version-check --constraint $(VENV)/constraints.txt --editable '.[dev]'
	@touch $@
