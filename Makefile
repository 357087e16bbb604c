# `make help` lists the targets. Each one makes what it needs (.venv, the cluster, the images) and is quick when run again.
PYTHON ?= python3.11
NAME ?= flywheel
PY := .venv/bin/python
PYTEST ?= $(PY) -m pytest
export NAME

.DEFAULT_GOAL := help
.PHONY: help venv demo demo-down test test-unit check e2e e2e-full regen requirements images cluster-up cluster-down benchmarks

help: ## This list.
	@sed -nE 's/^([a-z0-9-]+):.*## (.*)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

venv: ## The virtual environment .venv, from the hashed requirements.
	@$(PYTHON) requirements/bootstrap.py

demo: venv ## Two generations of a small real model on a real cluster, from the base model to a chat (CONTEXT=... takes yours).
	$(PY) -m e2e.demo up

demo-down: venv ## Remove what the demo made.
	$(PY) -m e2e.demo down

test: check ## Everything that CI runs: unit, trainer, API server and cluster tests.
	$(PYTEST) -m "not full" --cov --cov-report=term

test-unit: venv ## The quick part: no cluster, no training.
	$(PYTEST) -m "not (apiserver or training or cluster or full)" tests

check: venv ## Lint, types, room rules, generated files; seconds, changes nothing.
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports --no-cache
	$(PY) -m flywheel_operator.model.crds crds --check
	$(PY) -m flywheel_operator.model.transitions_doc docs/transitions.md --check
	$(PY) -m flywheel_analysis.schema docs/schemas/analysis-report.json --check
	$(PY) charts/sync.py --check

e2e: venv ## The cluster tests of `make test` alone.
	$(PYTEST) -m "cluster and not full" e2e

e2e-full: venv ## All tests marked full, which take longer: of the cluster and of the trainer.
	$(PYTEST) -m full

regen: venv ## Write the generated files anew: CRDs, docs/transitions.md, docs/schemas, the chart's copies and manifests/base.
	$(PY) -m flywheel_operator.model.crds crds
	$(PY) -m flywheel_operator.model.transitions_doc docs/transitions.md
	$(PY) -m flywheel_analysis.schema docs/schemas/analysis-report.json
	$(PY) charts/sync.py

requirements: venv ## Resolve the pinned requirements anew (asks the package index; PIP_FIND_LINKS names the CPU torch).
	$(PY) requirements/compile.py

images: venv ## Build the images (buildah as root on Debian 12, else Docker).
	$(PY) -m e2e.images build

cluster-up: venv ## A real single-node Kubernetes without Docker (NAME=flywheel); the first time builds it, 10 minutes.
	$(PY) -m e2e.cluster up --name $(NAME)

cluster-down: venv ## Remove that cluster without a trace.
	$(PY) -m e2e.cluster down --name $(NAME)

benchmarks: venv ## What performance is claimed from.
	$(PY) -m benchmarks.trainer_overhead
	$(PY) -m benchmarks.gateway_cpu
	$(PY) -m benchmarks.router_cpu
	$(PY) -m benchmarks.abtest_errors
	$(PY) -m benchmarks.analysis_speed
