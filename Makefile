# Every chore has one target. `make help` lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3
TORCH ?= 2.13.0
BUF_AGAINST ?= .git\#branch=main,subdir=protos
PYTEST_FLAGS ?=
BENCH_FLAGS ?=

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed-local
INSTALLED_DEV := $(VENV)/.installed-dev
PROTOS_VENV := .venv-protos
PROTOS_TOOLS := $(PROTOS_VENV)/.installed-grpcio-tools-1.71.2-mypy-protobuf-3.6.0
AUDIT_VENV := .venv-audit
AUDIT_TOOLS := $(AUDIT_VENV)/.installed-pip-audit-2.10.1-cyclonedx-bom-7.5.0
LOCK_VENV := .venv-lock
LOCK_TOOLS := $(LOCK_VENV)/.installed-uv-0.13.8
LOCK_FLAGS ?=
BUF := node_modules/.bin/buf
PAGE := services/triptych_gateway/web
PAGE_TOOLS := $(PAGE)/node_modules/.package-lock.json
PROTOS := $(sort $(wildcard protos/triptych/*/*.proto))
CODE := shared services tests benchmarks training examples

# What is installed where: a lock each in deploy/locks, with the extras that it has. `dev` has what all others have.
LOCK_dev := dev training jwt
LOCK_all := local jwt quantization
LOCK_coordinator := coordinator telemetry jwt
LOCK_gateway := gateway telemetry
LOCK_text-encoder := text-encoder telemetry jwt quantization gguf
LOCK_denoiser := denoiser telemetry jwt quantization gguf
LOCK_vae-codec := vae-codec telemetry jwt quantization gguf
LOCKS := dev all coordinator gateway text-encoder denoiser vae-codec

ENGINE ?= docker
IMAGES ?= coordinator gateway text-encoder denoiser vae-codec
TAG ?= latest
IMAGE_FLAGS ?=

OUT ?= image.png

# The user's words reach the shell as environment variables, never as shell text, and $(value) keeps make from
# expanding a $ in them.
unexport PROMPT OUT SEED SIZE STEPS GUIDANCE NEGATIVE
export IMAGE_PROMPT := $(value PROMPT)
export IMAGE_OUT := $(value OUT)
export IMAGE_SEED := $(value SEED)
export IMAGE_SIZE := $(value SIZE)
export IMAGE_STEPS := $(value STEPS)
export IMAGE_GUIDANCE := $(value GUIDANCE)
export IMAGE_NEGATIVE := $(value NEGATIVE)

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | awk -F'\t' '{printf "  make %-14s %s\n", $$1, $$2}'
	@echo
	@echo '  make image PROMPT="a zebra to the left of a red fire truck" OUT=zebra.png'
	@echo '    optional: SEED=7 SIZE=256x192 (width x height) STEPS=28 GUIDANCE=4.5 NEGATIVE="blurry"'

.PHONY: image
image: $(INSTALLED) ## Make a picture: PROMPT="..." OUT=image.png [SEED SIZE STEPS GUIDANCE NEGATIVE]
	@test -n "$$IMAGE_PROMPT" || { echo 'make image needs a prompt: make image PROMPT="a red fire truck" OUT=truck.png' >&2; exit 2; }
	@$(BIN)/triptych generate --output "$$IMAGE_OUT" \
	  $${IMAGE_SEED:+--seed "$$IMAGE_SEED"} $${IMAGE_SIZE:+--size "$$IMAGE_SIZE"} $${IMAGE_STEPS:+--steps "$$IMAGE_STEPS"} \
	  $${IMAGE_GUIDANCE:+--guidance "$$IMAGE_GUIDANCE"} $${IMAGE_NEGATIVE:+--negative "$$IMAGE_NEGATIVE"} -- "$$IMAGE_PROMPT"

.PHONY: install
install: $(INSTALLED) ## Make the environment with everything that generates pictures

.PHONY: test
test: $(INSTALLED_DEV) $(PROTOS_TOOLS) ## Run all tests, fast ones first
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

.PHONY: check
check: $(INSTALLED_DEV) protos-check ## Lint, formatting, types, import rules, fresh stubs, the contract
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy shared services benchmarks training
	$(BIN)/lint-imports
	@if command -v npm >/dev/null; then $(MAKE) --no-print-directory buf page-check; else echo 'npm is not here: skipped buf lint, buf breaking and the page'; fi

.PHONY: fmt
fmt: $(INSTALLED_DEV) ## Format the code and apply safe fixes
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

.PHONY: protos
protos: $(PROTOS_TOOLS) ## Generate the Python stubs in shared/triptych/v1 and keda
	$(call generate_stubs,shared)

.PHONY: protos-check
protos-check: $(PROTOS_TOOLS) ## Fail if the committed stubs are not what protos/ gives
	@folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && $(call generate_stubs,"$$folder") && \
	for package in v1 keda; do \
	  diff -r -x __init__.py -x __pycache__ "$$folder/triptych/$$package" shared/triptych/$$package \
	    || { echo "shared/triptych/$$package is stale: run make protos and commit" >&2; exit 1; }; \
	done

# protoc and its plugins with exact versions: stubs from the oldest supported grpcio-tools load on every newer runtime.
define generate_stubs
PATH="$(PROTOS_VENV)/bin:$$PATH" $(PROTOS_VENV)/bin/python -m grpc_tools.protoc -Iprotos --python_out=$(1) --mypy_out=quiet:$(1) \
	  --grpc_python_out=$(1) --mypy_grpc_out=quiet:$(1) $(PROTOS)
endef

.PHONY: buf
buf: $(BUF) ## Lint protos/ and refuse changes that break clients of main
	$(BUF) lint protos
	$(BUF) breaking protos --against '$(BUF_AGAINST)'

.PHONY: page
page: $(PAGE_TOOLS) ## Build the gateway's page from its sources
	cd $(PAGE) && npm run --silent check && npm run --silent build

.PHONY: page-test
page-test: $(INSTALLED_DEV) $(PAGE_TOOLS) ## Drive the page, and the example for pages, in Chromium, against real services
	TRIPTYCH_BROWSER_TESTS=1 $(BIN)/python -m pytest tests/gateway/test_page.py tests/polyglot/test_browser.py

.PHONY: page-check
page-check: $(PAGE_TOOLS) ## Fail if the committed page is not what its sources give
	@cd $(PAGE) && npm run --silent check
	@folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && \
	(cd $(PAGE) && npm run --silent build -- --logLevel warn --outDir "$$folder") && diff -rq "$$folder" $(PAGE)/../static \
	  || { echo 'services/triptych_gateway/static is stale: run make page and commit' >&2; exit 1; }

# Pins that are still right stay: LOCK_FLAGS=--upgrade takes the newest, LOCK_FLAGS='--upgrade-package NAME' that of one.
.PHONY: lock
lock: $(LOCK_TOOLS) ## Pin all dependencies with their hashes, in deploy/locks: [LOCK_FLAGS=--upgrade]
	@echo 'torch==$(TORCH)' > $(LOCK_VENV)/torch.txt
	@$(foreach name,$(LOCKS),$(call write_lock,$(name)) &&) true

# For every platform and Python that this project runs on.
define write_lock
$(LOCK_VENV)/bin/uv pip compile pyproject.toml $(addprefix --extra ,$(LOCK_$(1))) --output-file deploy/locks/$(1).txt $(LOCK_FLAGS) \
	  --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --custom-compile-command 'make lock' \
	  --constraints $(LOCK_VENV)/torch.txt $(if $(filter dev,$(1)),,--constraints deploy/locks/dev.txt)
endef

# PyPI is asked for one package first: where it does not answer, pip-audit would skip them all and say that all is well.
.PHONY: audit
audit: $(AUDIT_TOOLS) ## Look for known vulnerabilities of the locked packages
	@$(AUDIT_VENV)/bin/python -c '$(ASK_PYPI)' 2>/dev/null || \
	  { echo 'PyPI, which knows of vulnerabilities, does not answer: nothing was audited (make sbom works without it)' >&2; exit 1; }
	@$(AUDIT_VENV)/bin/pip-audit --requirement deploy/locks/dev.txt --require-hashes --disable-pip --progress-spinner off

define ASK_PYPI
from packaging.version import Version; from pip_audit._service import PyPIService, ResolvedDependency; \
assert PyPIService(timeout=10).query(ResolvedDependency("pip", Version("23.2.1")))[1]
endef

.PHONY: sbom
sbom: $(AUDIT_TOOLS) ## Write sbom.cdx.json, the locked packages as a CycloneDX bill of materials
	@$(AUDIT_VENV)/bin/python -W ignore -m cyclonedx_py requirements deploy/locks/all.txt --pyproject pyproject.toml --output-file sbom.cdx.json
	@echo sbom.cdx.json

.PHONY: images
images: ## Build the container images: [ENGINE=docker TAG=latest IMAGE_FLAGS="--build-arg ..."]
	@for target in $(IMAGES); do \
	  $(ENGINE) build --file deploy/Containerfile --target "$$target" --tag "triptych/$$target:$(TAG)" $(IMAGE_FLAGS) \
	    --build-arg VERSION="$$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)" \
	    --build-arg REVISION="$$(git rev-parse HEAD)" --build-arg SOURCE_DATE_EPOCH="$$(git log -1 --format=%ct)" . || exit 1; \
	done

.PHONY: bench
bench: $(INSTALLED_DEV) ## Time one picture, the wire, and requests at once: [BENCH_FLAGS=--quick]
	@folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && \
	for part in peers wire throughput; do \
	  $(BIN)/python -m benchmarks.speed.$$part --out "$$folder/$$part.json" $(BENCH_FLAGS) && echo || exit 1; \
	done && $(BIN)/python -m benchmarks.speed.ratios "$$folder"

.PHONY: train
train: $(INSTALLED_DEV) training/node_modules ## Train the default model: hours; cut off, it goes on where it was
	$(BIN)/python -m training

training/node_modules: training/package.json
	cd training && npm install --no-audit --no-fund --no-package-lock && touch node_modules

.PHONY: clean
clean: ## Remove what the other targets made
	rm -rf $(VENV) $(PROTOS_VENV) $(AUDIT_VENV) $(LOCK_VENV) sbom.cdx.json node_modules $(PAGE)/node_modules .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache

# torch comes first and exactly, so that the version is the tested one; TORCH=... chooses another.
$(INSTALLED): pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet 'torch==$(TORCH)'
	$(BIN)/python -m pip install --quiet --editable '.[local]'
	@touch $@

$(INSTALLED_DEV): pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet 'torch==$(TORCH)'
	$(BIN)/python -m pip install --quiet --editable '.[dev,training]'
	@touch $@ $(INSTALLED)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.12 ..." if sys.version_info < (3, 11) else 0)'
	@echo 'Making the environment in $(VENV): a few minutes, once.'
	$(PYTHON) -m venv $(VENV)

$(PROTOS_TOOLS):
	rm -rf $(PROTOS_VENV)
	$(PYTHON) -m venv $(PROTOS_VENV)
	$(PROTOS_VENV)/bin/python -m pip install --quiet grpcio-tools==1.71.2 mypy-protobuf==3.6.0 setuptools
	@touch $@

$(AUDIT_TOOLS):
	@$(PYTHON) -m venv --clear $(AUDIT_VENV)
	@$(AUDIT_VENV)/bin/python -m pip install --quiet pip-audit==2.10.1 cyclonedx-bom==7.5.0 \
	  || { echo 'pip-audit and cyclonedx-bom are not installed, and no package index answers: run this once where one does' >&2; exit 1; }
	@touch $@

$(LOCK_TOOLS):
	@$(PYTHON) -m venv --clear $(LOCK_VENV)
	@$(LOCK_VENV)/bin/python -m pip install --quiet uv==0.13.8
	@touch $@

$(PAGE_TOOLS): $(PAGE)/package-lock.json
	cd $(PAGE) && npm ci --silent --no-audit --no-fund --ignore-scripts
	@touch $@

$(BUF):
	npm install --silent --no-save --no-package-lock --prefix . @bufbuild/buf@1.75.0
