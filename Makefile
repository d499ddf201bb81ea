# make demo      the four tasks in a real ComfyUI, pictures in demo/output/
# make comfyui   a ComfyUI with the nodes, for the browser
# make test      every test that needs no GPU;  PYTEST_ARGS="tests/unigs -x" runs a part
# make bundled-model  trains unigs/models/unigs-tiny again, from the sprites on, in some six hours; goes on where it was stopped
# make lint | types | setup | clean (outputs and caches) | distclean (also .venv and .comfyui)
#
# TORCH          what pip installs as torch, for a GPU; without it the small build for CPUs. Give it once, later runs keep it:
#                make setup TORCH=torch
# COMFYUI_VERSION  which ComfyUI is fetched: 0.3.75 (default) or 0.33.0, see RELEASES in demo/comfyui.py
# COMFYUI_PATH   a ComfyUI folder to use instead of fetching one;  COMFYUI_PYTHON  the interpreter that runs it
#
# Paths are relative throughout, so that the repository may lie anywhere, under any name.

PYTHON ?= python3
TORCH ?= torch==2.13.0
TORCHVISION ?= torchvision==0.28.0
PYTEST_ARGS ?=

VENV_PYTHON := .venv/bin/python
PIP := $(VENV_PYTHON) -m pip --disable-pip-version-check
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

PARTS := tiny tiny_more tiny_things tiny_stuff

.PHONY: demo comfyui test bundled-model lint types setup clean distclean FORCE
.DELETE_ON_ERROR:

demo: setup
	$(VENV_PYTHON) -m demo.run

comfyui: setup
	@$(VENV_PYTHON) -m demo.comfyui

test: setup
	$(VENV_PYTHON) -m pytest $(PYTEST_ARGS)

bundled-model: setup
	$(VENV_PYTHON) -m training.datasets.scenes
	set -e; for part in $(PARTS); do \
		.venv/bin/torchrun --standalone --nproc-per-node 2 -m training.train_joint --config training/configs/$$part.toml --cpu; \
	done

lint: .venv/packages
	$(VENV_PYTHON) -m ruff check .

types: .venv/packages
	$(VENV_PYTHON) -m pyright --pythonpath $(VENV_PYTHON)

setup: .venv/packages .comfyui/torchvision
	@$(VENV_PYTHON) -m demo.comfyui --get

# What follows is made once: a second run sees that it is there and does nothing.
.venv/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed; name it: make PYTHON=...")'
	$(PYTHON) -m venv .venv
	@touch $@

# Torch first, so that nothing after it brings a build of its own. The build for CPUs has an index of its own; where that
# cannot be reached, it is the one that pip finds.
ifeq ($(origin TORCH),file)
INSTALL_TORCH = $(PIP) install --quiet --retries 0 --index-url https://download.pytorch.org/whl/cpu $(TORCH) 2>/dev/null || \
	$(PIP) install --quiet $(TORCH)
else
INSTALL_TORCH = $(PIP) install --quiet $(TORCH)
endif

.venv/torch: .venv/pip
	$(PIP) uninstall --quiet --yes torch
	$(INSTALL_TORCH)
	@echo '$(TORCH)' > $@

ifneq ($(origin TORCH),file)
ifneq ($(strip $(TORCH)),$(strip $(shell cat .venv/torch 2>/dev/null)))
.venv/torch: FORCE
endif
endif

# The packages of the project but not the project itself: tests and demo run it from here, and the nodes must find the engine
# by relative import alone.
.venv/packages: .venv/torch pyproject.toml requirements.txt demo/comfyui-requirements.txt
	$(PIP) freeze --local | grep '^torch[ =]' > .venv/constraints.txt
	$(VENV_PYTHON) -m demo.requirements dev > .venv/requirements.txt
	$(PIP) install --quiet -c .venv/constraints.txt -r .venv/requirements.txt -r demo/comfyui-requirements.txt
	@touch $@

# For ComfyUI alone, and not in .venv: one that does not match the torch there fails to import, and takes transformers and
# diffusers with it. ComfyUI's starter knows how to live with it (demo/comfyui.py).
.comfyui/torchvision: .venv/torch
	rm -rf $@
	$(PIP) install --quiet --no-deps --target $@ $(TORCHVISION)
	@touch $@

clean:
	rm -rf demo/output demo/contact_sheet.png artifacts build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .comfyui/*data .comfyui/*.log
	find . -name __pycache__ -not -path './.venv/*' -not -path './.comfyui/*' -prune -exec rm -rf {} +

distclean: clean
	rm -rf .venv .comfyui
