# Two commands: `make demo` labels the sample images, `make test` runs every test. Both set up .venv first.

PYTHON ?= python3
UV = .venv/bin/uv
UV_VERSION = 0.13.9

.PHONY: demo test lint check format lock samples bench clean

demo: .venv/run
	.venv/bin/pixscribe run configs/demo.yaml

test: .venv/dev
	.venv/bin/python -m pytest

lint: .venv/dev
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy

check: lint test

format: .venv/dev
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

samples: .venv/run
	.venv/bin/python data/samples/draw.py

bench: .venv/dev
	.venv/bin/python -m benchmarks

# the locks hold versions and hashes, and no place to fetch them from
lock: $(UV)
	$(UV) pip compile pyproject.toml --group dev --universal --python-version 3.11 --generate-hashes \
	  --no-annotate --no-header --upgrade -q -o requirements-dev.lock
	$(UV) pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes \
	  --no-annotate --no-header -q -c requirements-dev.lock -o requirements.lock

clean:
	rm -rf .venv data/runs

.venv/run: requirements.lock pyproject.toml | $(UV)
	$(UV) pip install -q --python .venv/bin/python --require-hashes -r requirements.lock
	$(UV) pip install -q --python .venv/bin/python --no-deps -e .
	@touch $@

.venv/dev: requirements-dev.lock .venv/run
	$(UV) pip install -q --python .venv/bin/python --require-hashes -r requirements-dev.lock
	@touch $@

$(UV):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "pixscribe needs Python 3.11 or newer; name one with: make demo PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -m venv .venv \
	  || { echo "Python's venv module is missing; on Debian it comes with: apt install python3-venv"; exit 1; }
	.venv/bin/python -m pip install -q --disable-pip-version-check uv==$(UV_VERSION)
