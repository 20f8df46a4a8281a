.DEFAULT_GOAL := help
.PHONY: help demo test quick check format reference docs build slow bench clean

help:  ## print this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  \1\t/' | expand -t 12

demo:  ## train the digits twins, with and without SAM (under 4 minutes)
	uv run samovar demo

test:  ## run all tests but the slow ones, in parallel
	uv run pytest

quick:  ## run the unit tests that train nothing (under a minute)
	uv run pytest tests/unit -m "not slow and not trains and not costly and not oracle"

check:  ## lint, format, types and layers
	uv run ruff check .
	uv run ruff format --check .
	uv run mypy
	uv run lint-imports

format:  ## format the code and fix what ruff can fix
	uv run ruff check --fix .
	uv run ruff format .

reference:  ## write docs/reference.md from the docstrings
	uv run python docs/make_reference.py

docs:  ## build the documentation site into site/; a broken link is an error
	uv run --group docs python docs/make_site.py .site
	uv run --group docs zensical build --strict

build:  ## build the wheel and the source archive into dist/, and check what they say
	rm -rf dist
	uv build
	uvx twine check --strict dist/*

slow:  ## run the slow claims, one by one; results belong in docs/log.md
	uv run pytest -m slow -n0

bench:  ## run the benchmarks: ratios measured side by side
	uv run --group oracle python benchmarks/sam_step.py
	uv run python benchmarks/loading.py
	uv run --group oracle python benchmarks/curvature.py
	uv run --group oracle python benchmarks/landscape.py
	uv run --group oracle python benchmarks/corruptions.py
	uv run python benchmarks/evaluation.py
	uv run python benchmarks/adversarial.py

clean:  ## remove caches and build output
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .site site dist
