# `make demo` and `make test` install what they need into .venv on a bare machine.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
DATA   ?=
RUN    := $(BIN)/hybridsnn run
FLAGS  := $(if $(DATA),--data $(DATA))

.PHONY: help install demo mnist mnist-scratch nmnist cifar10 bench bench-gpu test lint clean

help:  ## this list
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */: /' | column -t -s :

install: $(BIN)/.installed  ## make the virtual environment and install the package

# One stamp a set of extras: installed anew when the metadata changes.
$(BIN)/.installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable .
	touch $@

$(BIN)/.installed-tonic: $(BIN)/.installed
	$(BIN)/pip install --quiet --editable '.[tonic]'
	touch $@

$(BIN)/.installed-test: $(BIN)/.installed
	$(BIN)/pip install --quiet --editable '.[test]'
	touch $@

$(BIN)/.installed-bench: $(BIN)/.installed
	$(BIN)/pip install --quiet --editable '.[bench]'
	touch $@

demo: $(BIN)/.installed  ## train, convert and fine-tune on digits, and print the table
	$(RUN) pipelines/demo.yaml

mnist: $(BIN)/.installed  ## LeNet-5 on MNIST; DATA=FOLDER holds MNIST/raw
	$(RUN) pipelines/mnist-lenet5.yaml $(FLAGS)

mnist-scratch: $(BIN)/.installed  ## LeNet-5 on MNIST from scratch with STOP; DATA=FOLDER holds MNIST/raw
	$(RUN) pipelines/mnist-lenet5-scratch.yaml $(FLAGS)

nmnist: $(BIN)/.installed-tonic  ## LeNet-5 on N-MNIST recordings; DATA=FOLDER holds NMNIST/Train and NMNIST/Test
	$(RUN) pipelines/nmnist-lenet5.yaml $(FLAGS)

cifar10: $(BIN)/.installed  ## VGG5 on CIFAR-10 as pictures; DATA=FOLDER holds train/ and test/
	$(RUN) pipelines/cifar10-vgg5.yaml $(FLAGS)

bench: $(BIN)/.installed-bench  ## time and memory as ratios, to other libraries too, into docs/
	cd benchmarks && ../$(BIN)/python run_all.py

bench-gpu: $(BIN)/.installed-bench $(BIN)/.installed-test  ## the same on a CUDA device, after the tests of its kernels
	cd benchmarks && ../$(BIN)/python gpu.py

test: $(BIN)/.installed-test  ## check style and types, and run the tests
	$(BIN)/ruff check hybridsnn tests benchmarks
	$(BIN)/ruff format --check hybridsnn tests benchmarks
	$(BIN)/mypy
	$(BIN)/pytest

lint: $(BIN)/.installed-test  ## style and types only
	$(BIN)/ruff check hybridsnn tests benchmarks
	$(BIN)/ruff format --check hybridsnn tests benchmarks
	$(BIN)/mypy

clean:  ## remove the virtual environment and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
