# make demo: a synthetic scene, reconstructed and compared with its truth.
# make test: everything the tests check. Both set up what they need in .venv.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin

# hloc as it is today. It is not on the package index, and torchvision, which it needs, would bring
# another torch: the tests have a stand-in for the one function that is used.
HLOC := hloc @ https://github.com/cvg/Hierarchical-Localization/archive/HEAD.zip

.PHONY: demo test tests slow lint clean
.DEFAULT_GOAL := demo

$(VENV)/.done: pyproject.toml setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN)/python -m pip install --quiet --upgrade "pip>=23.2"
	$(RUN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

$(VENV)/.hloc: $(VENV)/.done
	$(RUN)/python -m pip install --quiet --no-deps --timeout 10 --retries 0 "$(HLOC)" && touch $@ \
		|| echo "hloc cannot be installed here: the tests that need it are skipped."

demo: $(VENV)/.done
	$(RUN)/edm-hloc demo outputs/demo

# lint takes one core for a minute or more: the tests run beside it.
test: $(VENV)/.done $(VENV)/.hloc
	$(MAKE) --no-print-directory --jobs 2 lint tests

# worksteal: neighbouring tests mostly run in one process, so that what tests of a file share is made once.
tests: $(VENV)/.done
	$(RUN)/python -m pytest -q -n 2 --dist worksteal

# Ray is 70 MB, and only slow tests and one other need it.
$(VENV)/.ray: $(VENV)/.done
	$(RUN)/python -m pip install --quiet -c constraints.txt -e ".[ray]"
	touch $@

slow: $(VENV)/.done $(VENV)/.hloc $(VENV)/.ray
	$(RUN)/python -m pytest -q -m "slow or not slow"

lint: $(VENV)/.done
	$(RUN)/ruff format --check --quiet .
	$(RUN)/ruff check --quiet .
	$(RUN)/mypy
	$(RUN)/lint-imports --no-cache

clean:
	rm -rf $(VENV) outputs/demo .pytest_cache .mypy_cache .ruff_cache
