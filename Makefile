# Every target sets itself up on a fresh machine: it makes .venv, installs the project and its tools there, then does its work.
# Needs: make, git and a Python of at least 3.10 (choose one with `make PYTHON=python3.12 test`).

MIN     := 3, 10
PYTHON  ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.10 python; do \
             $$p -c 'import sys; sys.exit(sys.version_info < ($(MIN)))' 2>/dev/null && echo $$p && break; done)
VENV    := .venv
STAMP   := $(VENV)/.installed
# PyTorch for the CPU, or for the GPU whose driver is found; CPU=0: with CUDA in any case
TORCH   := $(if $(filter 0,$(CPU)),,--torch-backend=auto)
PIP      = $(VENV)/bin/python -m pip --disable-pip-version-check --no-input install
INSTALL  = $(VENV)/bin/uv pip install --python $(VENV)/bin/python $(TORCH) -e '.[$(1)]' \
	   || { echo "== uv could not install it (see above); pip tries, with its own settings"; $(PIP) -e '.[$(1)]'; }
ACTIVE  := PATH="$(CURDIR)/$(VENV)/bin:$$PATH"

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo app weights test test-all check lab docs quarto readme refresh hooks clean distclean

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1  \t/p' Makefile

$(STAMP): settings.ini setup.py pyproject.toml
	@if [ -z "$(PYTHON)" ]; then \
	   echo "No Python of version 3.10 or newer was found (looked for python3, python3.10 to python3.13, python)."; \
	   echo "Install one, or name it: make PYTHON=/path/to/python3.11 test"; exit 1; fi
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < ($(MIN)) and "sgmim needs Python 3.10 or newer; $(PYTHON) is " + sys.version.split()[0] \
	   + ". Name another: make PYTHON=python3.11 test")'
	@echo "== Setting up $(VENV) with $$($(PYTHON) --version): a minute or more, most of it for PyTorch"
	@$(PYTHON) -m venv $(VENV) || { echo "Could not make $(VENV). On Debian and Ubuntu: sudo apt install python3-venv; then rm -r $(VENV) and try again."; exit 1; }
	$(PIP) -q uv
	$(call INSTALL,dev)
	@touch $@

demo: $(STAMP) ## make the corpus, train, evaluate, plot: the whole method, in ten minutes
	$(VENV)/bin/sgmim_demo

app: $(STAMP) ## search pictures by speech, in a browser: the shipped weights, 200 pictures
	@$(VENV)/bin/python -c 'import importlib.util as u, sys; sys.exit(not u.find_spec("gradio"))' || $(call INSTALL,app)
	$(VENV)/bin/sgmim_app --browser

weights: $(STAMP) ## train the weights scenes-voices again (hours): make weights PEOPLE=folder of unpacked recordings
	$(call INSTALL,voices)
	$(VENV)/bin/python tools/weights.py $(PEOPLE)

test: $(STAMP) ## the quick tests: ruff, checks, the notebooks, pytest without slow tests
	@$(ACTIVE) bash tools/test.sh

test-all: $(STAMP) ## everything CI runs: the slow tests too (browser, full-size models, killed runs)
	@$(ACTIVE) bash tools/test.sh all

check: $(STAMP) ## only the quick checks (a few seconds): format, lint, modules, README, links, sidebar
	@$(ACTIVE) sh -c 'ruff format --check nbs tests tools benchmarks setup.py && ruff check nbs tests tools benchmarks setup.py'
	@$(ACTIVE) python tools/checks.py

lab: $(STAMP) ## open the notebooks in JupyterLab, at the first one
	$(VENV)/bin/jupyter trust nbs/tutorials/first_run.ipynb
	$(VENV)/bin/jupyter lab --notebook-dir=nbs nbs/tutorials/first_run.ipynb

docs: quarto $(STAMP) ## build the site into _docs (needs Quarto)
	@$(ACTIVE) python tools/docs.py

quarto:
	@command -v quarto >/dev/null || { echo "make docs needs Quarto 1.5 or newer: install it from https://quarto.org/docs/get-started"; exit 1; }

readme: $(STAMP) ## write README.md from nbs/index.ipynb
	@$(VENV)/bin/python tools/readme.py

refresh: $(STAMP) ## run notebooks and store their outputs: make refresh NB="models/00_patches index"
	@$(ACTIVE) python tools/refresh.py $(NB)

hooks: $(STAMP) ## let git and Jupyter clean and merge notebooks (writes to ~/.jupyter and .git)
	@$(ACTIVE) nbdev_install_hooks

clean: ## remove caches and built files, keep .venv
	rm -rf _proc _docs build dist *.egg-info .pytest_cache .ruff_cache nbs/nbdev.yml
	find sgmim tests tools nbs \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +

distclean: clean ## remove .venv too
	rm -rf $(VENV)
