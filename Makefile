# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
KERNELS := $(wildcard dgmn2cli/ops/csrc/*)

.PHONY: demo test check docs install sanitize faults clean

install: $(VENV)/.installed

# The package alone, with TensorBoard: its kernels compile while the libraries that it needs are fetched and unpacked.
$(VENV)/.package: setup.cfg setup.py pyproject.toml $(KERNELS)
	$(PYTHON) -m venv $(VENV)
	rm -rf build && mkdir build
	$(PYTHON) -c 'import configparser as c; f = c.ConfigParser(); f.read("setup.cfg"); \
		print(f["options"]["install_requires"], f["options.extras_require"]["train"], sep="\n")' > build/requirements.txt
	$(PIP) --no-deps --editable . & compiling=$$!; $(PIP) -r build/requirements.txt && wait $$compiling
	touch $@

# What development and tests need beside it; pip takes the package that is there already.
$(VENV)/.installed: $(VENV)/.package
	$(PIP) 'dgmn2cli[dev]'
	touch $@

demo: $(VENV)/.package
	$(BIN)/dgmn2 demo -o dgmn2-demo --overwrite

# Two processes side by side, each with its own half of the folders; what is not named here is the other's.
HALF = $(addprefix tests/,checkpoint cli distributed ops training)
PYTEST = OMP_WAIT_POLICY=PASSIVE OMP_NUM_THREADS=1 $(BIN)/python -m pytest
test: install
	mkdir -p build
	$(PYTEST) $(HALF) > build/tests.log 2>&1 & half=$$!; \
	$(PYTEST) $(HALF:%=--ignore=%); code=$$?; \
	wait $$half; code=$$((code + $$?)); cat build/tests.log; exit $$code

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

# The pages of docs/ as a site, in build/site; what is derived from the code is written anew.
docs: install
	$(BIN)/python docs/generate.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

# The CPU kernels under the address and undefined-behaviour sanitizers, 100,000 random cases (some ten minutes); then
# 20,000 raw calls of the operators, most with arguments that do not fit.
sanitize: install
	mkdir -p build
	$(CXX) -std=c++17 -O1 -g -pthread -fsanitize=address,undefined,float-cast-overflow -fno-sanitize-recover=all \
		-I dgmn2cli/ops/csrc tests/ops/fuzz_kernels.cpp -o build/fuzz_kernels
	build/fuzz_kernels 100000 1
	MALLOC_PERTURB_=165 PYTHONPATH=$(CURDIR) $(BIN)/python -W ignore tests/ops/fuzz_operators.py 20000 1

# Some twenty thousand injected faults and the negative controls (half an hour); the report says what came of each kind.
# A run that was cut goes on with `make faults FAULTS=--resume`.
faults: install
	PYTHONPATH=$(CURDIR):$(CURDIR)/tests OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m faults --out build/faults.json $(FAULTS)

clean:
	rm -rf $(VENV) build dist *.egg-info dgmn2-demo dgmn2cli/ops/*.so
