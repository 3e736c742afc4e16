# Needs Python 3.11+ and Node 20+; everything else is installed into .venv.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
STAMP = $(VENV)/.installed
# Three workers on two cores: the tests wait more than they compute.
WORKERS ?= 3
export PATH := $(abspath $(BIN)):$(PATH)

.PHONY: demo test lint front-end bench test-faults test-cluster clean setup chromium

setup: $(STAMP)

# torch first and pinned: left to itself, pip would take gigabytes of CUDA libraries on a machine without a GPU.
$(STAMP): pyproject.toml package.json yarn.lock constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	node -e 'process.exit(+process.versions.node.split(".")[0] < 20 ? (console.error("Node 20 or newer is needed"), 1) : 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[lab,torch,test]'
	touch $(STAMP)

demo: setup
	$(BIN)/python notebooks/demo.py

chromium:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null \
	|| { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
	     && apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium fonts-liberation >/dev/null; } \
	|| echo "no Chromium: the browser tests will be skipped"

lint: setup
	$(BIN)/ruff check jupyter_mlops tests notebooks benchmarks
	$(BIN)/mypy jupyter_mlops
	$(BIN)/jlpm lint:check

front-end: setup
	$(BIN)/jlpm test

# Real servers, browsers and jobs share the processors: what fails is tried once more, and the summary names it (RERUN).
# Tracebacks are Python's own: pytest's are parsed, which Python 3.11 cannot do safely beside other threads.
test: setup chromium lint front-end
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --reruns 1 --tb native -r fEsxXR

# The long form: more faults, each several times, which writes the table of docs/reliability.md; then what else takes long.
FAULTS_REPEAT ?= 3
test-faults: setup
	FAULTS_REPEAT=$(FAULTS_REPEAT) FAULTS_TABLE=docs/reliability.md \
	$(BIN)/python -m pytest -n 2 -m "faults or not faults" tests/faults
	$(BIN)/python -m pytest -n 2 --dist loadfile -m faults tests/integration tests/drivers

# Against the cluster that KUBECONFIG names, in namespaces of its own. Its nodes have, or can pull, the images:
# CLUSTER_IMAGE with any Python 3.11 or later, CLUSTER_MODELS_IMAGE with scikit-learn, pandas and skops as well (the tests
# of models are skipped without it), CLUSTER_TORCH_IMAGE with torch (those of several ranks are skipped without it).
CLUSTER_IMAGE ?= docker.io/library/python:3.11-slim
test-cluster: setup
	CLUSTER_IMAGE=$(CLUSTER_IMAGE) $(BIN)/python -m pytest -n 0 -m cluster tests/cluster tests/drivers/test_kubernetes.py

bench: setup
	$(BIN)/python benchmarks/run.py

clean:
	-JUPYTER_MLOPS_HOME=demo/workspace $(BIN)/jupyter mlops down --all --yes
	rm -rf $(VENV) demo node_modules labextension/lib jupyter_mlops/labextension
