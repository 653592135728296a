PYTHON ?= $(shell command -v python3.11 || command -v python3)
PY := .venv/bin/python

.PHONY: help setup demo test lint bench phantom phantom-hearts clean

help:
	@echo "make demo            build PIG and a chain, serve them on Triton, draw 16 pairs of each into demo/"
	@echo "make test            run the tests"
	@echo "make lint            ruff and mypy"
	@echo "make bench           the latency cases under pytest-benchmark"
	@echo "make phantom         train PIG's checkpoint that medgen ships, on a CPU"
	@echo "make phantom-hearts  train those of the heart's models, on a GPU"

setup: .venv/.complete

.venv/.complete: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --constraint constraints.txt --editable ".[server,bench,dev]"
	touch $@

demo: setup
	$(PY) -m export build --model pig
	$(PY) -m export build --model cmr_flow
	@$(PY) -m serving up --model pig --model cmr_flow & server=$$!; \
	trap 'kill $$server $$client 2>/dev/null; wait' EXIT; \
	draw() { \
	$(PY) -m serving sample --model $$1 --count 16 --seed 7 --wait 120 --out $$2 --force & client=$$!; \
	while kill -0 $$client 2>/dev/null; do kill -0 $$server 2>/dev/null || exit 1; sleep 0.5; done; \
	wait $$client; }; \
	draw pig demo/pig && draw cmr_flow demo/hearts
	@echo "Open demo/pig/sheet.png and demo/hearts/sheet.png"

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

HEARTS = $(PY) -m training fit --preset small --data phantom --precision bf16 --workers 4

phantom-hearts: setup
	$(HEARTS) --model cmr_mask       --batch 64 --set 'steps=[2320]'       --out runs/cmr_mask-phantom
	$(HEARTS) --model cmr_ddpm_image --batch 32 --set 'steps=[2960]'       --out runs/cmr_ddpm_image-phantom
	$(HEARTS) --model cmr_ldm_image  --batch 32 --set 'steps=[1200, 1680]' --out runs/cmr_ldm_image-phantom
	$(HEARTS) --model cmr_flow_image --batch 32 --set 'steps=[1780]'       --out runs/cmr_flow_image-phantom
	for model in cmr_mask cmr_ddpm_image cmr_ldm_image cmr_flow_image; do \
	$(PY) -m training pack runs/$$model-phantom training/checkpoints/$$model-phantom || exit 1; done

clean:
	rm -rf .venv build *.egg-info runs samples demo model_repository/*/1/bundle
