# `make demo` and `make test` install what they need into .venv on a bare machine.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
DATA   ?=
PRESET ?= full
SEEDS  ?= 1
MINUTES ?=
RUN    := $(BIN)/hybridsnn run
FLAGS  := $(if $(DATA),--data $(DATA))

# Tables: `make table-cifar10 DATA=FOLDER PRESET=laptop SEEDS=3 MINUTES=30`; the pages go to docs/results/.
HYBRID_CIFAR10 := cifar10-vgg5 cifar10-vgg9 cifar10-vgg16 cifar10-resnet8 cifar10-resnet20
HYBRID_CIFAR100 := cifar100-vgg11
HYBRID_IMAGENET := imagenet-resnet34 imagenet-vgg16
STOP := mnist-lenet5-scratch cifar10-vgg11-stop cifar10-resnet18-stop cifar100-vgg11-stop dvs-gesture-vgg11-stop \
        cifar10-dvs-vgg11-stop
BESIDE := nmnist-lenet5
FEW_STEPS := few-steps-mnist-lenet5 few-steps-cifar10-vgg8 few-steps-cifar10-resnet20
# $(call table,recipes,name,title,preset)
table = $(BIN)/hybridsnn table $(1:%=pipelines/%.yaml) --preset $(4) --seeds $(SEEDS) --title "$(3)" \
        --output docs/results/$(2) $(FLAGS) \
        $(if $(MINUTES),--time-limit $(MINUTES)) && $(BIN)/hybridsnn results docs/results

.PHONY: help install demo mnist mnist-scratch nmnist table-cifar10 table-cifar100 table-imagenet table-stop \
        table-few-steps table-laptop table-hours table-gpu bench bench-gpu test lint clean

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

table-cifar10: $(BIN)/.installed  ## the hybrid paper's rows on CIFAR-10; DATA=FOLDER holds the data sets
	$(call table,$(HYBRID_CIFAR10),cifar10-$(PRESET),Hybrid conversion and STDB on CIFAR-10,$(PRESET))

table-cifar100: $(BIN)/.installed  ## the hybrid paper's row on CIFAR-100
	$(call table,$(HYBRID_CIFAR100),cifar100-$(PRESET),Hybrid conversion and STDB on CIFAR-100,$(PRESET))

table-imagenet: $(BIN)/.installed  ## the hybrid paper's rows on ImageNet
	$(call table,$(HYBRID_IMAGENET),imagenet-$(PRESET),Hybrid conversion and STDB on ImageNet,$(PRESET))

table-stop: $(BIN)/.installed-tonic  ## the STOP paper's rows
	$(call table,$(STOP),stop-$(PRESET),STOP,$(PRESET))

table-few-steps: $(BIN)/.installed  ## accurate at few steps: training-free, with staircases, fine-tuned
	$(call table,$(FEW_STEPS),few-steps-$(PRESET),Few time steps,$(PRESET))

table-laptop: $(BIN)/.installed-tonic  ## all rows with the preset laptop, about an hour on two cores
	$(call table,$(HYBRID_CIFAR10) $(HYBRID_CIFAR100) $(HYBRID_IMAGENET) $(STOP) $(BESIDE),laptop,All rows on a laptop,laptop)

table-hours: $(BIN)/.installed  ## VGG5 at full width on CIFAR-10 as JPEG files, some hours on two cores
	$(call table,cifar10-vgg5,hours,VGG5 at full width,hours)

table-gpu: MINUTES := 9
table-gpu: $(BIN)/.installed  ## VGG16 on CIFAR-10 as JPEG files on a GPU, 9 minutes at a time
	$(call table,cifar10-vgg16,gpu,VGG16 at full width,gpu)

bench: $(BIN)/.installed-bench  ## time and memory as ratios, to other libraries too, into docs/
	cd benchmarks && ../$(BIN)/python run_all.py

bench-gpu: $(BIN)/.installed-bench $(BIN)/.installed-test  ## the same on a CUDA device, after the tests of its kernels
	cd benchmarks && ../$(BIN)/python gpu.py

test: $(BIN)/.installed-test  ## check style and types, and run the tests
	$(BIN)/ruff check hybridsnn tests benchmarks
	$(BIN)/ruff format --check hybridsnn tests benchmarks
	$(BIN)/mypy
	$(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist worksteal

lint: $(BIN)/.installed-test  ## style and types only
	$(BIN)/ruff check hybridsnn tests benchmarks
	$(BIN)/ruff format --check hybridsnn tests benchmarks
	$(BIN)/mypy

clean:  ## remove the virtual environment and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
