# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
KERNELS := $(wildcard dgmn2cli/ops/csrc/*)

.PHONY: demo test check install clean

install: $(VENV)/.installed

$(VENV)/.installed: setup.cfg setup.py pyproject.toml $(KERNELS)
	$(PYTHON) -m venv $(VENV)
	rm -rf build
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

demo: install
	$(BIN)/python examples/make_checkpoint.py demo/setr_pup-tiny_untrained.pth
	$(BIN)/dgmn2 infer examples/summer_palace.jpg -m setr_pup-tiny \
		--checkpoint demo/setr_pup-tiny_untrained.pth -o demo --save ids,color,overlay,stats --overwrite

test: install
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) build dist *.egg-info demo dgmn2cli/ops/*.so
