# Everything here starts from nothing: a virtual environment is made and the package installed where they are missing.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
GOLDENS ?= tests/goldens

.PHONY: demo test slow goldens lint clean

demo: $(VENV)/.installed
	mkdir -p out
	$(BIN)/python -m moshi_mlx.run_inference moshi_mlx/demo/prompts/sum.flac out/reply.wav --text out/reply.txt --demo

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest

# Minutes long or gigabytes large.
slow: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m slow

# The same checks over any folder of the layout of tests/goldens.
goldens: $(VENV)/.installed-test
	$(BIN)/python -m pytest tests/test_goldens.py -m "slow or not slow" --goldens "$(GOLDENS)"

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache --no-logo

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e .
	touch $@

$(VENV)/.installed-test: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e ".[test]"
	touch $@ $(VENV)/.installed

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	touch $@ $(VENV)/.installed $(VENV)/.installed-test

clean:
	rm -rf $(VENV) out build *.egg-info
