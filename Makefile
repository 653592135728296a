PYTHON ?= $(shell command -v python3.11 || command -v python3)
PY := .venv/bin/python

.PHONY: help setup demo test lint bench phantom clean

help:
	@echo "make demo     build PIG's engines, serve them on Triton, draw 16 pairs into demo/"
	@echo "make test     run the tests"
	@echo "make lint     ruff and mypy"
	@echo "make bench    the latency cases under pytest-benchmark"
	@echo "make phantom  train the checkpoint that medgen ships"

setup: .venv/.complete

.venv/.complete: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --constraint constraints.txt --editable ".[server,bench,dev]"
	touch $@

demo: setup
	$(PY) -m export build --model pig
	@$(PY) -m serving up --model pig & server=$$!; \
	$(PY) -m serving sample --model pig --count 16 --seed 7 --wait 120 --out demo --force & client=$$!; \
	trap 'kill $$server $$client 2>/dev/null; wait' EXIT; \
	while kill -0 $$client 2>/dev/null; do kill -0 $$server 2>/dev/null || exit 1; sleep 0.5; done; \
	wait $$client
	@echo "Open demo/sheet.png"

test: setup
	$(PY) -m pytest

lint: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

bench: setup
	$(PY) -m pytest benchmarks/latency

phantom: setup
	$(PY) -m training fit --model pig --preset small --data phantom --precision bf16 --compile --out runs/phantom
	$(PY) -m training pack runs/phantom training/checkpoints/pig-phantom

clean:
	rm -rf .venv build *.egg-info runs samples demo model_repository/*/1/bundle
