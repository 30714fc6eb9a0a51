# make quickstart   install into .venv and fine-tune a small model, start to finish
# make serve        its adapter and the base, in the browser and as an API
# make test         the tests, without torch          make parity   comparison with torch, transformers and PEFT
# make slow         the tests that take minutes       make large    comparison at the size of real models: 8 GiB
# make lint         ruff
# make audit        known vulnerabilities in the packages of requirements/lock-serve.txt
# Another interpreter: make PYTHON=/path/to/python3.12 ...; more pytest options: make test PYTEST="-x --durations 20"

SUPPORTED := import sys, venv, ensurepip; raise SystemExit(not (3, 9) <= sys.version_info[:2] <= (3, 12))
PYTHON ?= $(shell for name in python3.11 python3.12 python3.10 python3.9 python3 python; do \
	if $$name -c "$(SUPPORTED)" 2>/dev/null; then echo $$name; break; fi; done)
VENV := .venv
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip --disable-pip-version-check

# An environment whose interpreter is gone is recreated.
$(shell test ! -e $(VENV) || $(RUN) -c "" 2>/dev/null || rm -rf $(VENV))

.PHONY: quickstart serve test parity large slow lint audit clean
.DELETE_ON_ERROR:

quickstart: $(VENV)/installed
	$(RUN) -m jittor_lora quickstart $(QUICKSTART)

serve: $(VENV)/installed-serve
	$(RUN) -m jittor_lora serve --adapter runs/quickstart --runs runs --adapters-from runs $(SERVE)

# The doctor compiles Jittor if needed, and shows progress.
test: $(VENV)/installed-test
	$(RUN) -m jittor_lora doctor --deep
	$(RUN) -m pytest -q -n auto --dist worksteal -m "not parity and not slow" $(PYTEST)

parity: $(VENV)/installed-parity
	$(RUN) -m pytest -q -n auto --dist worksteal -m "parity and not slow" $(PYTEST)

large: $(VENV)/installed-parity
	$(RUN) -m pytest -q -m "parity and slow" $(PYTEST)

slow: $(VENV)/installed-test
	$(RUN) -m pytest -q -n auto --dist worksteal -m "slow and not parity" $(PYTEST)

lint: $(VENV)/installed-dev
	$(RUN) -m ruff check .

audit: $(VENV)/installed-audit
	$(VENV)/audit/bin/python requirements/audit.py requirements/lock-serve.txt

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis .schemathesis
	find src tests -name __pycache__ -prune -exec rm -rf {} +

# A stamp is written last: an interrupted step is repeated.
$(VENV)/made:
	@test -n "$(PYTHON)" || { echo "No Python 3.9 to 3.12 with venv found (3.13 is not supported: Jittor needs numpy<2)."; \
		echo "Debian, Ubuntu: sudo apt-get install python3 python3-venv python3-dev; or make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c "$(SUPPORTED)" || { echo "$(PYTHON): Python 3.9 to 3.12 with venv is needed (3.13 is not supported)."; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	touch $@

$(VENV)/installed: $(VENV)/made pyproject.toml
	$(PIP) install -q -e .
	touch $@

$(VENV)/installed-serve: $(VENV)/installed
	$(PIP) install -q -e ".[serve]"
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(PIP) install -q -e ".[test]"
	touch $@

$(VENV)/installed-parity: $(VENV)/installed-test requirements/parity.txt
	$(PIP) install -q -e ".[test,parity]" -c requirements/parity.txt
	touch $@

# In a separate environment: its dependencies are not part of what is tested.
$(VENV)/installed-audit: $(VENV)/made
	$(RUN) -m venv --clear $(VENV)/audit
	$(VENV)/audit/bin/python -m pip --disable-pip-version-check install -q "pip-audit>=2.7"
	touch $@

$(VENV)/installed-dev: $(VENV)/made pyproject.toml
	$(PIP) install -q -e ".[dev]"
	touch $@
