# make demo  sets everything up, then runs the whole method offline on the bundled photos
# make test  sets everything up, then runs the tests of a contributor
# make lint / make types / make pages  lint, types, and the commands of the documentation: .ci/run adds them to the tests
# make long  crash points, faults, fuzz, bombs, ...: MINUTES=10 for each check, SEED=0; then all cases of the tests of
#            which make test runs a slice
# make imports  tests that everything can be imported, and c3 import: what runs on macOS and Windows
# make dist  builds wheel and sdist in dist/, checks them, and runs the wheel in a fresh environment
# make docs  builds the documentation in build/docs; a broken link is an error, and a code span of what does not exist
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check
# the tests start hundreds of processes, and each would compile every module
export PYTHONDONTWRITEBYTECODE :=

# what tests and lint need, beside the dependency group dev
EXTRAS := cpu,eval,heif,hf,images,int8,interop,ray,s3,serve,st,url,vector-databases,video,yaml
MINUTES ?= 10
SEED ?= 0

.PHONY: demo test imports lint types pages long dist docs clean

$(VENV)/.demo: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) -e ".[cpu,eval]"
	touch $@

$(VENV)/.dev: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) "pip>=25.1"  # knows dependency groups
	$(INSTALL) --group dev -e ".[$(EXTRAS)]"
	$(INSTALL) --no-deps "autofaiss>=2.18"  # asks for numpy 1, and works with 2
	$(INSTALL) --no-deps "daft>=0.7"  # asks for pyarrow below 26, and works with it
	touch $@ $(VENV)/.demo $(VENV)/.docs  # dev has all of docs

$(VENV)/.docs: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) "pip>=25.1"
	$(INSTALL) --group docs -e ".[models]"
	touch $@

demo: $(VENV)/.demo
	$(BIN)/c3 demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n auto --dist worksteal

imports: $(VENV)/.dev
	$(BIN)/python -m pytest tests/test_architecture.py tests/inputs/test_import_embeddings.py

pages: $(VENV)/.dev
	$(BIN)/python -m pytest -q -n 2 --dist worksteal tests/docs/check_*.py

long: $(VENV)/.dev
	$(BIN)/python -m pytest -q -o timeout=0 tests/long/check_*.py --minutes $(MINUTES) --seed $(SEED)
	C3_ALL_CASES=1 $(BIN)/python -m pytest -q -n auto --dist worksteal `grep -l slice_of tests/*/test_*.py`

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

# the second time as a user's scripts are checked, who does not have the settings of this project
types: $(VENV)/.dev
	$(BIN)/mypy
	$(BIN)/mypy --config-file= --cache-dir=.mypy_cache/user --strict --follow-imports=silent examples/typed_client.py tests/typed_script.py

dist: $(VENV)/.dev
	rm -rf dist build/lib build/bdist.*
	$(BIN)/python -m build --no-isolation
	$(BIN)/python -m twine check --strict dist/*
	$(BIN)/check-wheel-contents dist/*.whl
	$(BIN)/python .ci/smoke.py dist/*.whl

docs: $(VENV)/.docs
	$(BIN)/python docs/spans.py
	$(BIN)/python -m sphinx -q -E -a -W --keep-going -b html docs build/docs
	@echo "Open build/docs/index.html"

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
