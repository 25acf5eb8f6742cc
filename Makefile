# Each verb makes .venv when it is not there. PYTHON: 3.11 or newer.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo test test-interop test-executorch test-coreml test-sdcpp compatibility campaign lint bench gpu slow docs web

demo: $(VENV)/installed  ## a student from the embedded teacher, in minutes; says where its pictures are
	$(BIN)/rcdeploy distill recipes/quickstart.toml

test: $(VENV)/installed-dev  ## everything but what is marked slow, in two processes
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart=0

slow: $(VENV)/installed-dev  ## the tests at full size: 15 to 20 GB of memory
	$(BIN)/python -m pytest -q -m slow -s

test-interop: $(VENV)/installed-dev  ## opens a package with Optimum, in an environment of its own (.venv-interop)
	$(BIN)/rcdeploy export examples/teachers/fashion --out build/interop
	$(BIN)/rcdeploy export examples/teachers/fashion_xl --out build/interop-xl
	test -d .venv-interop || $(PYTHON) -m venv .venv-interop
	.venv-interop/bin/pip install -q -c constraints-interop.txt -e '.[optimum]' pytest pytest-timeout
	.venv-interop/bin/python -m pytest -q -m interop tests/test_interop.py -p no:cacheprovider

test-executorch:  ## exports for phones and runs them by ExecuTorch, in an environment of its own (.venv-executorch): 15 minutes
	test -d .venv-executorch || $(PYTHON) -m venv .venv-executorch
	.venv-executorch/bin/pip install -q -c constraints-executorch.txt -e '.[executorch]' pytest pytest-timeout
	.venv-executorch/bin/python -m pytest -q -m executorch tests/test_executorch.py -p no:cacheprovider --timeout 1800

test-coreml:  ## converts for Core ML and reads it back, in an environment of its own (.venv-coreml); nothing is run
	test -d .venv-coreml || $(PYTHON) -m venv .venv-coreml
	.venv-coreml/bin/pip install -q -c constraints-coreml.txt -e '.[coreml]' pytest pytest-timeout
	.venv-coreml/bin/python -m pytest -q -m coreml tests/test_coreml.py -p no:cacheprovider

test-sdcpp: $(VENV)/installed-dev  ## full-size models in stable-diffusion.cpp, which pip compiles, in an environment of its own (.venv-sdcpp)
	$(BIN)/python tests/full_size_models.py build/sdcpp b-tiny b-base
	test -d .venv-sdcpp || $(PYTHON) -m venv .venv-sdcpp
	.venv-sdcpp/bin/pip install -q -c constraints-sdcpp.txt stable-diffusion-cpp-python numpy pillow pytest pytest-timeout
	.venv-sdcpp/bin/python -m pytest -q -m sdcpp tests/test_stable_diffusion_cpp.py -p no:cacheprovider --noconftest

compatibility: $(VENV)/installed-dev  ## who opens which student; writes docs/compatibility.md
	$(BIN)/python docs/compatibility.py

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

campaign: $(VENV)/installed-dev  ## 2,000 faults and hostile inputs, half an hour on two cores; writes results/campaign.md
	$(BIN)/python -m campaign --seed 0 --attempts 2000 --jobs 2 --docs

bench: $(VENV)/installed-dev  ## the short benchmarks; writes benchmarks/RESULTS.md
	$(BIN)/python benchmarks/results.py

gpu:  ## the tests and benchmarks of a GPU, 8 minutes, with the torch of PYTHON; writes docs/gpu.md's tables
	PYTHONPATH=.:export:runtime $(PYTHON) benchmarks/gpu.py

web:  ## the runtime of browsers, and a page in web/build/demo; needs Node 20 or newer, tests in Chromium where there is one
	cd web && npm ci && npm test

docs: $(VENV)/installed-docs  ## the documentation as a site in build/site; a broken link fails
	$(BIN)/python docs/generate.py
	$(BIN)/python docs/build.py

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt -e .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	touch $@

$(VENV)/installed-docs: $(VENV)/installed
	$(BIN)/pip install -q -c constraints.txt -e '.[docs]'
	touch $@
