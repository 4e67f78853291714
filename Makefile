# Everything runs in .venv, made once from pyproject.toml. A torch that the chosen Python already has is kept.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help table7 quick sweep train detect tables evidence evidence-sasa evidence-quick lab notebooks test test-deep test-all mutants slurm lint docs wheel bench gpu clean

help: ## print this list
	@echo 'The first target of a clone also sets up $(VENV).'
	@sed -n 's/^\([a-z0-9-]*\):.* ## /\1\t/p' Makefile | expand -t 12

table7: $(VENV)/.base ## recount SAN's Table 7, three seconds
	$(BIN)/python -m saprof.tables --table 7

quick: $(VENV)/.base ## measure one operator on this machine, less than half a minute
	$(BIN)/python -m saprof.sweep --operator pairwise_subtraction --footprint 7 --seconds 1

sweep: $(VENV)/.base ## the main job: SAN's Table 7 beside what this machine measures, three minutes
	$(BIN)/python -m saprof.sweep --footprint 3,5,7,9,11

train: $(VENV)/.studies ## train and judge a small SAN on handwritten digits, half a minute
	$(BIN)/python -m studies.train --model san_mini_pairwise --data digits

detect: $(VENV)/.detection ## train and judge a small detector on canvases, two or three minutes; draws what it finds
	$(BIN)/python -m studies.train --recipe canvas --output runs/detect
	@echo 'runs/detect/boxes.png has the detections on the right, and the ground truth on the left;'
	@echo 'runs/detect/precision_recall.png has precision against recall'

tables: $(VENV)/.studies ## SAN Tables 3 to 10 in miniature on digits, an hour or two
	$(BIN)/python -m studies.reproduce all --data digits --seeds 6

EVIDENCE := table3,table4,table5,table6,table7,table8,sec5.3

evidence: $(VENV)/.studies ## SAN Tables 3 to 8 in miniature on Fashion-MNIST, several hours on two cores; a second call continues
	$(BIN)/python -m studies.reproduce $(EVIDENCE) --data fashion --candidates 0.05,0.1,0.2,0.4 --record studies/recorded/fashion

evidence-sasa: $(VENV)/.studies ## SASA Tables 1 and 3 to 7 in miniature on Fashion-MNIST, several hours on two cores; a second call continues
	$(BIN)/python -m studies.reproduce --paper sasa --data fashion --candidates 0.05,0.1,0.2,0.4 --record studies/recorded/fashion_sasa

evidence-quick: $(VENV)/.studies ## the same for two networks and one seed, ten minutes; its accuracies mean nothing
	$(BIN)/python -m studies.reproduce sec5.3 --data fashion --smoke

lab: $(VENV)/.notebooks ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab --ServerApp.root_dir=$(CURDIR) $(if $(filter 0,$(shell id -u)),--allow-root) notebooks/01_operators.ipynb

notebooks: $(VENV)/.notebooks ## run all notebooks again and keep their outputs
	$(BIN)/python notebooks/execute.py

test: $(VENV)/.dev ## the first tier of tests; twenty minutes at first, to compile kernels
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-deep: $(VENV)/.dev ## the tests that make test leaves out
	$(BIN)/python -m pytest -n 2 --dist loadfile -m 'deep and not slurm'

test-all: test test-deep ## every test, a quarter of an hour

mutants: $(VENV)/.dev ## plant mistakes one by one in a copy, and check that a test finds each
	$(BIN)/python tests/mutants/campaign.py

slurm: $(VENV)/.dev ## the studies' jobs on a real Slurm of this machine alone; needs root, slurm-wlm and munge
	$(BIN)/python -m pytest -m slurm tests/studies/test_on_slurm.py

lint: $(VENV)/.dev ## formatting, lint and types
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/pyright
	$(BIN)/clang-format --dry-run --Werror kernels_cuda/csrc/* tests/cuda_on_host/*.cpp tests/cuda_on_host/*.h

# setuptools would also pack files that an earlier build left in build/
wheel: $(VENV)/.dev ## build a wheel in dist/
	rm -rf build
	$(BIN)/python -m pip wheel --disable-pip-version-check --no-deps --wheel-dir dist .

docs: $(VENV)/.dev ## build the documentation in site/; every warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

bench: $(VENV)/.dev ## the operators at SAN10's five stages, under pytest-benchmark
	$(BIN)/python -m pytest --benchmark-only

gpu: $(VENV)/.dev ## with a GPU: build, verify, test and measure, nine minutes; another call continues
	$(BIN)/python tests/on_gpu.py

clean: ## remove .venv
	rm -rf $(VENV)

# .venv/constraints.txt is a copy of constraints.txt. If .venv already has a torch, the copy pins that version, and pip
# chooses the torchvision that fits
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

$(VENV)/.detection: $(VENV)/.base
	$(BIN)/python -m pip install --disable-pip-version-check --constraint $(VENV)/constraints.txt --editable '.[studies,detection]'
	@touch $@

$(VENV)/.notebooks: $(VENV)/.base
	$(BIN)/python -m pip install --disable-pip-version-check --constraint $(VENV)/constraints.txt --editable '.[notebooks]'
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	$(BIN)/python -m pip install --disable-pip-version-check --constraint $(VENV)/constraints.txt --editable '.[dev]'
	@touch $@
