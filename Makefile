# The verbs of this repository; all of them work on .venv, and none needs another one first.

PYTHON ?= python3
BIN := .venv/bin
COMPOSE := $(shell docker compose version >/dev/null 2>&1 && echo docker compose || echo docker-compose)

.PHONY: setup lint types test seeds sanitize bench bench-smoke bench-methods demo up down

setup: .venv/.installed
	$(BIN)/python -m models.nn.kernels.native

.venv/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $@

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: .venv/.installed
	$(BIN)/mypy

# Two at a time: many tests wait for processes that they started.
test: .venv/.installed
	$(BIN)/python -m pytest --numprocesses=2 --dist=loadfile

# The tests that draw numbers, from other seeds.
seeds: .venv/.installed
	$(BIN)/python -m pytest -p tests.seeds --seeds-by=$(or $(BY),1000) --numprocesses=2 \
		--dist=loadfile tests/models tests/worker

# What python leaks is not ours; frames that are kept for later are not aligned for AVX512 (GCC bug
# 110027).
sanitize: export GRAFTWORK_NATIVE := sanitized
sanitize: export ASAN_OPTIONS := detect_leaks=0:detect_stack_use_after_return=0
sanitize: .venv/.installed
	$(BIN)/python -m models.nn.kernels.native
	LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so)" \
		$(BIN)/python -m pytest --numprocesses=2 --dist=worksteal tests/models/nn/kernels/native

# An hour or more, twenty minutes with QUICK=1; peers are installed first.
bench: setup
	failed=0; \
	$(BIN)/python -m benchmarks.train $(if $(DATA),--data "$(DATA)") $(if $(QUICK),--quick) || failed=1; \
	$(BIN)/python -m benchmarks.serve $(if $(DATA),--data "$(DATA)") $(if $(QUICK),--quick) || failed=1; \
	$(BIN)/python -m benchmarks.kernels $(if $(QUICK),--quick) || failed=1; \
	exit $$failed

bench-smoke: setup
	$(BIN)/python -m benchmarks.smoke

bench-methods: setup
	$(BIN)/python -m benchmarks.methods $(if $(DATA),--data "$(DATA)")

demo: setup
	$(BIN)/graftwork demo

up:
	$(COMPOSE) up -d --build --wait

down:
	$(COMPOSE) down
