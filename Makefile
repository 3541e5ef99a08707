# The commands of this project. `make help` lists them.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SETUP := $(VENV)/.setup-done
PACKAGES := trainer indexer server benchmarks

.DEFAULT_GOAL := help
.PHONY: help setup demo test check format protos constraints soak audit sbom deploy-check clean

help: ## List the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(SETUP) ## Create .venv with the exact, hash-pinned set of packages

$(SETUP): constraints/dev.txt pyproject.toml setup.py indexer/_exact.cpp indexer/_exact_loops.h \
		trainer/_vocabulary.cpp
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
		{ echo "Python 3.11, 3.12 or 3.13 is needed; $(PYTHON) is $$($(PYTHON) -V 2>&1)." \
		"Try: make setup PYTHON=python3.12" >&2; exit 1; }
	@command -v $${CXX:-c++} >/dev/null || command -v g++ >/dev/null || \
		{ echo "Annoy and parts of this package are compiled on installation and need a C++ compiler." \
		"Debian, Ubuntu: apt-get install g++ python3-dev. Fedora: dnf install gcc-c++ python3-devel." \
		"macOS: xcode-select --install." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --require-hashes -r constraints/dev.txt
	@rm -f indexer/_exact*.so trainer/_vocabulary*.so # or a former one would hide that it cannot be compiled
	$(BIN)/pip install --quiet --quiet --no-deps --editable .
	@$(BIN)/python -c "import indexer.exact, trainer.vocabulary"
	@touch $@

demo: $(SETUP) ## Train, index, serve and query MovieLens 100K, and compare the backends
	$(BIN)/python -m benchmarks demo

# The test processes share the cores; pools of threads in each would only wait for one another.
test: export TF_NUM_INTRAOP_THREADS = 1
test: export TF_NUM_INTEROP_THREADS = 1
test: export OPENBLAS_NUM_THREADS = 1
test: export OMP_NUM_THREADS = 1
test: $(SETUP) ## Run the unit, contract and end-to-end tests
	$(BIN)/pytest -m "not slow" -n 3 --dist loadfile --cov --cov-report=term:skip-covered --cov-fail-under=90 --durations=15

check: $(SETUP) ## Check format, lint, types, import rules and generated stubs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python protos/generate.py --check

format: $(SETUP) ## Format the code and mend what the linter can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

protos: $(SETUP) ## Generate the stubs from the .proto files
	$(BIN)/python protos/generate.py

constraints: ## Pin the tested set of packages anew (needs uv)
	uv pip compile --quiet --universal --generate-hashes --no-strip-extras --python-version 3.11 --extra dev \
		--no-header --no-annotate --no-emit-index-url --no-emit-package candidate-search \
		pyproject.toml --output-file constraints/dev.txt

soak: $(SETUP) ## Run the long soak and chaos tests
	$(BIN)/pytest -m slow

audit: $(SETUP) ## Look for known vulnerabilities in the pinned packages
	$(BIN)/pip-audit --require-hashes --disable-pip --requirement constraints/dev.txt

sbom: $(SETUP) ## Write a bill of materials of the installed packages (CycloneDX, sbom.json)
	$(BIN)/cyclonedx-py environment $(VENV) --pyproject pyproject.toml --output-file sbom.json

deploy-check: $(SETUP) ## Check the Dockerfile, the compose file and the manifests in deploy/
	$(BIN)/hadolint deploy/Dockerfile
	$(BIN)/kubernetes-validate --strict deploy/kubernetes/*/*.yaml
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec deploy/compose.yaml
	$(BIN)/pytest -q tests/test_deploy.py -k kustomization

clean: ## Remove what the other commands made, .venv included
	rm -rf $(VENV) indexer/_exact*.so trainer/_vocabulary*.so artifacts/demo build dist htmlcov .coverage* .*_cache .hypothesis *.egg-info
	find $(PACKAGES) protos tests -name __pycache__ -type d -prune -exec rm -rf {} +
