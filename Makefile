# make demo: a synthetic scene, reconstructed and compared with its truth.
# make test: everything the tests check. Both set up what they need in .venv.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin

.PHONY: demo test slow lint clean
.DEFAULT_GOAL := demo

$(VENV)/.done: pyproject.toml setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN)/python -m pip install --quiet --upgrade "pip>=23.2"
	$(RUN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

demo: $(VENV)/.done
	$(RUN)/edm-hloc demo outputs/demo

test: $(VENV)/.done lint
	$(RUN)/python -m pytest -q -n 2

slow: $(VENV)/.done
	$(RUN)/python -m pytest -q -m "slow or not slow"

lint: $(VENV)/.done
	$(RUN)/ruff format --check --quiet .
	$(RUN)/ruff check --quiet .
	$(RUN)/mypy
	$(RUN)/lint-imports --no-cache

clean:
	rm -rf $(VENV) outputs/demo .pytest_cache .mypy_cache .ruff_cache
