# Two commands: `make demo` and `make test`. Both set up .venv first, which is a no-op when it is there and current.
PYTHON ?= python3
PY := .venv/bin/python
STORAGE ?= storage
# The address of a SQLite file, whatever signs its path has.
URI := import sys; from condu_ray.orchestration.watch.mlflow_address import sqlite_uri; print(sqlite_uri(sys.argv[1]))
# A crash is a failure once: with a new worker in the crashed one's place, pytest-xdist 3.8 tries again, or waits for ever.
SIDE_BY_SIDE := -n auto --maxprocesses 4 --max-worker-restart 0
# Each process that tests or a run start would compile condu_ray anew, and each that collects tests all of them.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-fast test-long lint audit docs format clean setup lock mlflow help

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12
	@echo "after that: .venv/bin/condu-ray --help"

setup: .venv/installed  ## make .venv from requirements.lock

.venv/installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "condu_ray needs Python 3.11 or newer, this is " + sys.version.split()[0])'
	test -x $(PY) || $(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check uv
	@# Compiled bytecode: without it every Ray worker would compile torch anew, at every start.
	$(PY) -m uv pip install --quiet --python $(PY) --compile-bytecode -r requirements.lock
	$(PY) -m uv pip install --quiet --python $(PY) --no-deps --editable .
	@touch $@

demo: setup  ## learn mini-MTIL by five methods on the embedded default
	$(PY) jobs/run_mtil.py --recipe mini_mtil --protocol task,union --method condu,condu-svd,sequential,individual,zero-shot --merging.bits 0.4 --storage "$(STORAGE)"

test: setup  ## all tests
	$(PY) -m pytest $(SIDE_BY_SIDE)

test-fast: setup  ## tests that start no Ray cluster and are not slow
	$(PY) -m pytest $(SIDE_BY_SIDE) -m "not ray and not slow and not long"

test-long: setup  ## the tests that take minutes each
	$(PY) -m pytest -m long

lint: setup  ## style and types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy condu_ray jobs

audit: setup  ## the environment against the lock, the lock against yanked releases and advisories
	$(PY) .ci/audit.py $(AUDIT)

docs: setup  ## make what pages take from the code and from committed results
	$(PY) .ci/docs.py
	$(PY) dashboards/generate.py

format: setup  ## let ruff mend what it can
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

lock: setup  ## pin the dependencies anew
	$(PY) -m uv pip compile --quiet --universal --python-version 3.11 --extra dev pyproject.toml -o requirements.lock

mlflow: setup  ## show the runs in MLflow's pages, on this machine only
	.venv/bin/mlflow server --host 127.0.0.1 --port 5000 --backend-store-uri "$$($(PY) -c "$(URI)" "$(STORAGE)/mlflow.db")"

clean:  ## remove the environment and caches; storage stays
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache .hypothesis build condu_ray.egg-info
