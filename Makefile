# Two commands from a fresh machine: `make sample` and `make test`. Both make .venv with the pinned packages first.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: sample test check format faults scale job advisories clean

sample: .venv/installed
	$(BIN)/overnight infer --config data/sample/config.toml

# Two at a time: much of the suite waits for programs it has started.
test: .venv/installed-dev
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

check: .venv/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: .venv/installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/python -m tasks.reference

# Hundreds of kills and power cuts, the planted bugs, the soak, and the program itself under strace where there is one.
faults: .venv/installed-dev
	FAULTS_FULL=1 $(BIN)/python -m pytest tests/faults
	$(BIN)/python -m tests.faults campaign

# A million rows through everything but the model, with the time and the driver's memory.
scale: .venv/installed-dev
	$(BIN)/python -m tests.scale.million

# torch comes first and by its exact version, so that a CPU build that pip can find is taken before any other.
.venv/torch: constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) torch==2.13.0
	touch $@

.venv/installed: .venv/torch pyproject.toml
	$(PIP) --editable .
	touch $@

.venv/installed-dev: .venv/torch pyproject.toml
	$(PIP) --editable ".[dev]"
	touch .venv/installed $@

# The time of a small job with a 7B model of random weights, from process start to exit; for a machine with a GPU.
job: .venv/installed-dev
	$(BIN)/python -m tests.scale.whole_job

# The pinned packages against the known advisories; fails for one that cannot be looked up too. Needs the network.
advisories: .venv/audit/installed
	.venv/audit/bin/pip-audit --strict --requirement constraints.txt --no-deps --disable-pip

.venv/audit/installed:
	$(PYTHON) -m venv .venv/audit
	.venv/audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit==2.10.1
	touch $@

clean:
	rm -rf .venv out
