# Everything here starts from nothing: a virtual environment is made and the package installed where they are missing.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
GOLDENS ?= tests/goldens
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check
# A published client for the server's tests. Of what else it names, torch above all, it needs nothing.
# Before the package, whose console scripts have some of its names.
CLIENT := $(PIP) --no-deps "moshi>=0.2.13"
PLAYER := $(if $(filter Darwin,$(shell uname -s)),afplay,aplay)

.PHONY: demo test slow goldens lint clean

demo: $(VENV)/.installed
	@mkdir -p out
	@echo "Asking the demo model a recorded question (moshi_mlx/demo/prompts/sum.flac) ..."
	@$(BIN)/python -m moshi_mlx.run_inference moshi_mlx/demo/prompts/sum.flac out/reply.wav --text out/reply.txt --demo
	@echo "Hear it: $(PLAYER) out/reply.wav"
	@echo "Next:    source $(VENV)/bin/activate, then python -m moshi_mlx.local --demo"

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n 2 --dist loadfile

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
	@echo "Making a virtual environment in $(VENV) ..."
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	@echo "Installing the package into $(VENV); the first time takes a minute or two ..."
	@$(PIP) -e ".[server]"
	@touch $@

$(VENV)/.installed-test: pyproject.toml | $(VENV)/bin/python
	@echo "Installing the package and what its tests need into $(VENV) ..."
	@$(CLIENT)
	@$(PIP) -e ".[test]"
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/bin/python
	@echo "Installing the package, its tests and lint into $(VENV) ..."
	@$(CLIENT)
	@$(PIP) -e ".[dev]"
	@touch $@ $(VENV)/.installed $(VENV)/.installed-test

clean:
	rm -rf $(VENV) out build *.egg-info
