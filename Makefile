# Two commands do all the set-up: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help demo test test-rest test-verbs test-long soak lint docs fuzz bench clean

help:  ## This list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(VENV)/installed: pyproject.toml constraints.txt
	@echo "Installing into $(VENV), which takes minutes"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

demo: $(VENV)/installed  ## Report on a real MR study that ships with the tests
	$(BIN)/imgpipe infer tests/data/hippocrop_study1 --out out

lint: $(VENV)/installed-test  ## Linters and the type checker
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The tests in two halves, on two cores, the longest first; no part is left out because another has failed. What is not
# in the first is in the second.
VERBS := tests/pipelines/test_*.py
test: $(VENV)/installed-test  ## Linters, the type checker and all tests
	$(MAKE) --no-print-directory --keep-going --jobs=2 test-verbs lint test-rest

test-verbs: $(VENV)/installed-test  ## The half of the tests that calls the verbs
	$(BIN)/pytest -p no:cacheprovider $(VERBS)

test-rest: $(VENV)/installed-test  ## All other tests
	$(BIN)/pytest -p no:cacheprovider --ignore-glob='$(VERBS)'

test-long: $(VENV)/installed-test  ## Tests that take minutes: runs killed at random moments, and continued
	OMP_NUM_THREADS=1 $(BIN)/pytest -m long

soak: $(VENV)/installed-test  ## 200 studies through a watcher that is killed 60 times at random moments (SEED=n: others)
	$(BIN)/pytest -m long tests/pipelines/test_watch_killed.py

docs: $(VENV)/installed  ## Write docs/config.md and the report's JSON Schema anew, after a key of a config or a report has changed
	$(BIN)/python -m imaging.config.reference > docs/config.md
	$(BIN)/python -m imaging.report.schema > imaging/report/report.schema.json

fuzz: $(VENV)/installed-test  ## 20,000 broken files through the reader; what fails is kept in fuzz_failures
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz.py --mutants 20000 --jobs 2

# BENCH=--small tries them on little; NNUNET_PYTHON is the Python of an environment of its own with `pip install nnunetv2`.
BENCH ?=
NNUNET_PYTHON ?=
bench: $(VENV)/installed-test  ## Infer, preprocessing, start and growth beside their peers: one table and one plot (half an hour)
	$(BIN)/python benchmarks/bench_infer.py $(BENCH) --results benchmarks/results $(if $(NNUNET_PYTHON),--nnunet-python $(NNUNET_PYTHON))
	$(BIN)/python benchmarks/bench_preprocess.py $(BENCH) --results benchmarks/results
	$(BIN)/python benchmarks/bench_startup.py --results benchmarks/results
	$(BIN)/python benchmarks/bench_growth.py $(BENCH) --results benchmarks/results
	$(BIN)/python benchmarks/make_table.py benchmarks/results docs/performance.md

clean:  ## Remove the environment and what was built
	rm -rf $(VENV) build dist out *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache fuzz_failures
