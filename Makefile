PYTHON ?= $(shell command -v python3.11 || command -v python3)
PY := .venv/bin/python
MEDGEN := .venv/bin/medgen

.PHONY: help setup demo test test-watched test-others lint bench phantom phantom-hearts wheel sbom clean

help:
	@echo "make demo            build PIG and a chain, serve them on Triton, draw 16 pairs of each into demo/"
	@echo "make test            run the tests"
	@echo "make lint            ruff and mypy"
	@echo "make bench           the latency cases under pytest-benchmark"
	@echo "make phantom         train PIG's checkpoint that medgen ships, on a CPU"
	@echo "make phantom-hearts  train those of the heart's models, on a GPU"
	@echo "make wheel           what others install, into dist/"
	@echo "make sbom            what .venv holds, with licences: dist/sbom.json, CycloneDX"

setup: .venv/.complete

# uv takes a quarter of pip's time. Where an index of one's own is told to pip alone, it finds nothing there, and pip
# does it; torch is pip's in any case, for there it may be the one for CPUs, of half a GB.
# A run imports a small part of the 4 GB, which Python compiles then; to compile it all took nearly as long as to install it.
ALL := --quiet --constraint constraints.txt --editable ".[server,bench,dev]"
.venv/.complete: pyproject.toml constraints.txt
	@echo "Installing into .venv, 4 GB: takes a minute or more, in which nothing is said"
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --no-compile --constraint constraints.txt torch uv
	$(PY) -m uv pip install --python $(PY) $(ALL) || $(PY) -m pip install --no-compile $(ALL)
	$(PY) -m pip install --quiet --constraint constraints.txt --no-build-isolation pyradiomics \
	|| echo "Without a C compiler there is no pyradiomics: evaluation leaves radiomics out"
	touch $@

demo: setup
	$(MEDGEN) export build --model pig
	$(MEDGEN) export build --model cmr_flow
	@$(MEDGEN) up --model pig --model cmr_flow & server=$$!; \
	trap 'kill $$server $$client 2>/dev/null; wait' EXIT; \
	draw() { \
	$(MEDGEN) sample --model $$1 --count 16 --seed 7 --wait 120 --out $$2 --force & client=$$!; \
	while kill -0 $$client 2>/dev/null; do kill -0 $$server 2>/dev/null || exit 1; sleep 0.5; done; \
	wait $$client; }; \
	draw pig demo/pig && draw cmr_flow demo/hearts
	@echo "Open demo/pig/sheet.png and demo/hearts/sheet.png"
	@echo 'To draw others in a browser: . .venv/bin/activate; medgen up & medgen page; kill $$!'

# A worker that dies ends the run: with another in its place it was seen to wait for ever.
# A test is a process on one core. What is killed, or watched while it works, mostly waits; whenever it does not, the
# others, which are nicer, leave it the cores.
WATCHED := tests/endurance $(patsubst %,tests/serving/triton/test_%.py,in_flight keeper server telemetry)

test: setup
	@$(MAKE) --no-print-directory --jobs 2 test-watched test-others

test-watched: setup
	@said=$$($(PY) -m pytest $(WATCHED) 2>&1); code=$$?; printf "%s\n" "$$said"; exit $$code

test-others: setup
	OMP_NUM_THREADS=1 nice -n 19 $(PY) -m pytest --numprocesses auto --maxprocesses 4 --max-worker-restart 0 \
	--dist loadfile --no-loadscope-reorder $(WATCHED:%=--ignore=%)

lint: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

bench: setup
	$(PY) -m pytest benchmarks/latency

phantom: setup
	$(MEDGEN) fit --model pig --preset small --data phantom --precision bf16 --compile --out runs/phantom
	$(MEDGEN) pack runs/phantom training/checkpoints/pig-phantom

HEARTS = $(MEDGEN) fit --preset small --data phantom --precision bf16 --workers 4

phantom-hearts: setup
	$(HEARTS) --model cmr_mask       --batch 64 --set 'steps=[2320]'       --out runs/cmr_mask-first
	$(HEARTS) --model cmr_mask       --batch 32 --set 'steps=[4500]'       --out runs/cmr_mask-second \
	  --init runs/cmr_mask-first --seed 1 --set learning_rate=7e-4 --set focus=0.7 --precision no
	$(HEARTS) --model cmr_mask       --batch 32 --set 'steps=[2560]'       --out runs/cmr_mask-third \
	  --init runs/cmr_mask-second --seed 2 --set learning_rate=5e-4 --set focus=0.7 --precision no
	$(HEARTS) --model cmr_mask       --batch 32 --set 'steps=[1500]'       --out runs/cmr_mask-phantom \
	  --init runs/cmr_mask-third --seed 3 --set learning_rate=5e-4 --set focus=0.8 --set focus_at=0.25 --precision no
	$(HEARTS) --model cmr_ddpm_image --batch 32 --set 'steps=[2960]'       --out runs/cmr_ddpm_image-phantom
	$(HEARTS) --model cmr_ldm_image  --batch 32 --set 'steps=[1200, 1680]' --out runs/cmr_ldm_image-phantom
	$(HEARTS) --model cmr_flow_image --batch 32 --set 'steps=[1780]'       --out runs/cmr_flow_image-phantom
	for model in cmr_mask cmr_ddpm_image cmr_ldm_image cmr_flow_image; do \
	$(MEDGEN) pack runs/$$model-phantom training/checkpoints/$$model-phantom || exit 1; done

wheel: setup
	$(PY) -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

# In an environment of its own, so that it does not list itself.
sbom: setup
	$(PYTHON) -m venv .venv/sbom
	.venv/sbom/bin/python -m pip install --quiet cyclonedx-bom==7.5.0
	mkdir -p dist
	.venv/sbom/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible \
	--output-format JSON --output-file dist/sbom.json .venv/bin/python

clean:
	rm -rf .venv build dist *.egg-info runs samples demo model_repository/*/1/bundle
