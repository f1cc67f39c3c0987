# The few commands; `make help` lists them. Everything runs in .venv, which `make install` makes from scratch.

PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export DVC_NO_ANALYTICS := 1

.PHONY: help install run test test-slow soak check lock docs bench bench-peers gpu gpu-tests gpu-bench gpu-train gpu-wheels gpu-data shipped ui clean
.DEFAULT_GOAL := help

help: ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

install: .venv/installed ## make .venv and install everything that was tested together

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

run: install ## the main job: plan, download, crop, shard, train, evaluate, report
	fer repro
	@echo "Done. Open reports/index.html, and the runs with: make ui"

test: install ## the tests
	pytest -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

test-slow: install ## the tests that take minutes
	pytest -m slow

soak: install ## 200 short runs under random SIGKILL (half an hour); writes soak.json
	python tests/faults/soak.py --runs 200 --json soak.json

check: install ## what CI does before the tests: style, formatting, types
	ruff check . && ruff format --check . && mypy

lock: ## requirements.lock, after a change of pyproject.toml or constraints.txt (needs uv)
	(head -3 requirements.lock && echo "torch; python_version < '0'" | uv pip compile --quiet --no-header --no-annotate \
	--generate-hashes --python-version 3.11 --python-platform x86_64-manylinux_2_28 --constraint constraints.txt \
	--override /dev/stdin --extra serve --extra s3 pyproject.toml) > .requirements && mv .requirements requirements.lock

docs: install ## the site, in site/index.html; strict: no link leads nowhere
	NO_MKDOCS_2_WARNING=1 mkdocs build --quiet
	@echo "Open site/index.html"

bench: install ## the benchmarks (about an hour)
	fer bench reader && fer bench ray && fer bench models && fer bench crop && fer bench ingest && fer bench remote

bench-peers: install ## what `fer bench ingest` measures the reader against
	pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	pip install --quiet --disable-pip-version-check --no-deps litdata==0.2.76 mosaicml-streaming==0.13.0

gpu: ## on a machine with a GPU: its tests, the benchmarks, FER2013 (docs/gpu.md)
	@status=0; for part in tests bench train; do bash infra/gpu/run.sh $$part || status=$$?; done; exit $$status

gpu-tests gpu-bench gpu-train:
	bash infra/gpu/run.sh $(@:gpu-%=%)

WHEELS := pydantic pydantic_core annotated-types typing-inspection typing_extensions ruamel.yaml albumentations albucore simsimd stringzilla
gpu-wheels: install ## what a machine with torch, pyarrow, OpenCV and Python 3.12 may lack, in .gpu/wheels (8 MB)
	rm -rf .gpu/wheels
	pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
	  $(addprefix --platform manylinux,_2_28_x86_64 _2_17_x86_64 2014_x86_64) -c constraints.txt -d .gpu/wheels $(WHEELS)
	@test $$(du -sm .gpu/wheels | cut -f1) -le 10 && du -sh .gpu/wheels

gpu-data: install ## FER2013's shards for `make gpu-train`: make gpu-data FER2013=fer2013.csv
	rm -rf .gpu/project && mkdir -p .gpu/project/source
	cp "$(FER2013)" .gpu/project/source/ && cp infra/gpu/params.yaml .gpu/project/
	cd .gpu/project && for stage in download crop shard; do PYTHONPATH=../.. python -m pipelines.$$stage --dataset fer2013 || exit 1; done
	rm -rf .gpu/project/source .gpu/project/data/raw .gpu/project/data/faces
	@du -sh .gpu/project/data

shipped: install ## train the model that the package ships: make shipped FER2013=fer2013.csv VOTES=fer2013new.csv
	python -m pipelines.shipped --fer2013 "$(FER2013)" --votes "$(VOTES)"

ui: install ## MLflow's pages on the runs
	fer ui

clean: ## remove results and unfinished runs; faces, shards, searches, studies and the record in MLflow stay
	rm -rf trained evaluated explained reports/index.html .work
