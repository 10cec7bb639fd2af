# Everything runs in its own virtual environment; the first target that needs it makes it.
VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin
READY = $(VENV)/.ready
TORCH = torch==2.13.0
# The index of the builds that fit this machine, as pytorch.org's "Get Started" page names it; empty is pip's default.
TORCH_INDEX ?=
FUZZED = decode pickle tar npy npz zip list batch teacher study distill checkpoint student parquet arrow
TORCHVISION = torchvision==0.28.0
# Dependencies of CUDA builds of torch, which install them by themselves.
OF_CUDA = triton cuda-bindings cuda-pathfinder cuda-toolkit nvidia-cublas nvidia-cuda-cupti nvidia-cuda-nvrtc \
  nvidia-cuda-runtime nvidia-cudnn-cu13 nvidia-cufft nvidia-cufile nvidia-curand nvidia-cusolver nvidia-cusparse \
  nvidia-cusparselt-cu13 nvidia-nccl-cu13 nvidia-nvjitlink nvidia-nvshmem-cu13 nvidia-nvtx

.PHONY: help setup demo test test-slow coverage mutants chaos fuzz bench gpu same lint docs dist release-check lock audit format clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY)  ## make the virtual environment with everything pinned

# Every package of the lock is checked against its hash. torch is pinned only by version: the build (CPU or CUDA) depends
# on the machine, and each has its own hash.
$(READY): pyproject.toml requirements.lock
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes --requirement requirements.lock
	$(BIN)/python -m pip install --quiet $(TORCH) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
	$(BIN)/python -m pip install --quiet --no-deps $(TORCHVISION) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $(READY)

demo: $(READY)  ## the whole job on generated data: no download, no GPU, a few minutes
	$(BIN)/kd3 demo --out demo

test: $(READY)  ## the tests, in parallel
	$(BIN)/python -m pytest -n auto -m "not slow"

test-slow: $(READY)  ## the slow tests
	$(BIN)/python -m pytest -m slow

coverage: $(READY)  ## the tests, with their coverage of src: at least nine of ten branches
	$(BIN)/python -m pytest -n auto -m "not slow" --cov --cov-report=term-missing:skip-covered --cov-report=xml

mutants: $(READY)  ## break losses, selection, evaluation, exports, decoding and heads line by line and run the tests (needs mutmut)
	$(BIN)/python -m mutmut run && $(BIN)/python -m mutmut results

chaos: $(READY)  ## kill every kind of work at random moments, 200 times and more, and check that it ends the same
	KD3_KILLS=80 $(BIN)/python -m pytest -s tests/chaos

fuzz: $(READY)  ## break images, containers, checkpoints, pools, settings 20,000 times; guided by coverage, if atheris is installed
	KD3_FUZZ=10000 $(BIN)/python -m pytest -s --timeout 900 tests/fuzz
	for target in $$($(BIN)/python -c "import atheris" 2>/dev/null && echo $(FUZZED)); do \
	  $(BIN)/python tests/fuzz/coverage_guided.py $$target -max_total_time=60 || exit 1; done

bench: $(READY)  ## speed, beside the common way and the bare bound: ten minutes (BENCH=--quick: two)
	$(BIN)/python -m benchmarks $(BENCH)

gpu: $(READY)  ## correctness and speed on this machine's GPU: under nine minutes, one JSON and one page (GPU=--pretend: on the CPU)
	$(BIN)/python -m benchmarks.gpu $(GPU)

same: $(READY)  ## check that this checkout and REF (default: HEAD) train the same students, bit for bit: several minutes
	$(BIN)/python -m benchmarks.same --ref $(or $(REF),HEAD)

lint: $(READY)  ## style, types, and import contracts
	$(BIN)/ruff check src tests benchmarks examples docs
	$(BIN)/ruff format --check src tests benchmarks examples docs
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(READY)  ## the documentation as a site in ./site; warnings are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet --site-dir site

dist: $(READY)  ## a wheel in ./dist; the same commit gives the same bytes
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(BIN)/python -m build --wheel --no-isolation

release-check: dist  ## the wheel in an empty environment of each Python found of 3.10 to 3.13: version, methods, demo
	.ci/release-check dist/kd3-$$($(BIN)/python -c 'import kd3; print(kd3.__version__)')-py3-none-any.whl

lock:  ## pin every dependency again, with hashes, for all supported Pythons (needs uv)
	echo $(TORCH) > .torch.txt
	uv pip compile pyproject.toml --extra ci --universal --python-version 3.10 --generate-hashes --constraint .torch.txt \
	  --output-file requirements.lock --no-annotate --custom-compile-command "make lock" --quiet \
	  $(foreach name,torch torchvision $(OF_CUDA),--no-emit-package $(name))
	rm .torch.txt

audit: $(READY)  ## known vulnerabilities of the pinned packages, and a bill of materials (needs pip-audit, cyclonedx-py)
	pip-audit --requirement requirements.lock --disable-pip --require-hashes
	cyclonedx-py requirements requirements.lock --pyproject pyproject.toml --output-reproducible --output-file sbom.json

format: $(READY)  ## put the code into its style
	$(BIN)/ruff check --fix src tests benchmarks examples docs
	$(BIN)/ruff format src tests benchmarks examples docs

clean:  ## remove the environment, the demo and the site
	rm -rf $(VENV) demo site
