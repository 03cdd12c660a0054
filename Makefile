# `make run` and `make test` set everything up by themselves; the README says what they do by hand.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: install run test test-all check clean

install: $(INSTALLED)

run: $(INSTALLED)
	$(BIN)/python -m pipeline

test: $(INSTALLED)
	$(BIN)/python -m pytest -q -m "not slow" -n 2 --dist loadfile

test-all: $(INSTALLED)
	$(BIN)/pip install -q -c constraints.txt -e '.[test,test-all,benchmark,trainer,lightning,torchdata,ray]'
	$(BIN)/python -m pytest -q -m slow -n 2 --dist loadfile --timeout=900

check: $(INSTALLED)
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $(INSTALLED)

clean:
	rm -rf $(VENV) outputs data/cache data/runs
