# make demo   train and evaluate on drawn street scenes, write output/demo/report.html
# make test   lint, types and the whole test suite
# make rehearsal  the paper's configs for 30 iterations each, by two processes, in half precision
# make test-matrix  the fast tests with the oldest and the newest versions that setup.py allows
# make docs   the pages and the API as a site, in output/site
# make setup  only the environment, in .venv

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.10 python3; do \
	$$p -c 'import sys, venv; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null \
	&& echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv
JOBS ?= 2
# The first start of every program would compile it otherwise, and each start where Python may not write.
export UV_COMPILE_BYTECODE := 1

.PHONY: setup demo rehearsal test test-matrix lint format docs lock clean

setup: $(VENV)/.ready

$(VENV)/.ready: requirements/base.txt requirements/uv.txt requirements/detectron2.txt requirements/panoptic.txt setup.py
	@test -n "$(PYTHON)" || { echo "divdr needs Python 3.10 to 3.13 with its venv module; name one by PYTHON=..." >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.txt
	$(UV) pip install --quiet --python $(BIN)/python --require-hashes -r requirements/base.txt
	$(BIN)/python -c 'import detectron2' 2>/dev/null || $(UV) pip install --quiet --no-deps --require-hashes \
		--python $(BIN)/python --python-version 3.10 \
		--target "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')" \
		-r requirements/detectron2.txt
	$(BIN)/python -c 'import panopticapi' 2>/dev/null || $(UV) pip install --quiet --no-deps --require-hashes \
		--python $(BIN)/python -r requirements/panoptic.txt
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

demo: setup
	$(BIN)/python tools/demo.py

rehearsal: setup
	$(BIN)/python tools/rehearsal.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

# Two environments beside .venv, each of some GB; what starts programs or trains is left out.
MATRIX := output/matrix
OLDEST_PYTHON ?= 3.10
NEWEST_PYTHON ?= 3.13
FAST := tests/routing tests/experts tests/checkpoint tests/data tests/test_settings.py

test-matrix: $(MATRIX)/oldest/.ready $(MATRIX)/newest/.ready
	for set in oldest newest; do \
		OMP_NUM_THREADS=1 $(MATRIX)/$$set/bin/python -m pytest -n $(JOBS) -p no:cacheprovider $(FAST) || exit 1; \
	done

$(MATRIX)/oldest/.ready: ON = $(OLDEST_PYTHON)
$(MATRIX)/oldest/.ready: WITH = --constraint requirements/oldest.txt
$(MATRIX)/newest/.ready: ON = $(NEWEST_PYTHON)
$(MATRIX)/%/.ready: requirements/oldest.txt requirements/detectron2.txt requirements/panoptic.txt setup.py | setup
	$(UV) venv --quiet --clear --python $(ON) $(MATRIX)/$*
	$(UV) pip install --quiet --python $(MATRIX)/$*/bin/python $(WITH) --editable '.[test]'
	$(UV) pip install --quiet --no-deps --require-hashes --python $(MATRIX)/$*/bin/python --python-version 3.10 \
		--target "$$($(MATRIX)/$*/bin/python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')" \
		-r requirements/detectron2.txt
	$(UV) pip install --quiet --no-deps --require-hashes --python $(MATRIX)/$*/bin/python -r requirements/panoptic.txt
	@touch $@

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# What builds the site comes here alone: nothing else needs it. Without the variable mkdocs-material
# prints what its makers think of other programs.
docs: setup
	$(UV) pip install --quiet --python $(BIN)/python --require-hashes -r requirements/docs.txt
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Newest versions that fit, for every Python and platform, with hashes.
lock: setup
	$(UV) pip compile --quiet --no-header --generate-hashes --universal --python-version 3.10 --upgrade requirements/base.in -o requirements/base.txt
	$(UV) pip compile --quiet --no-header --generate-hashes --universal --python-version 3.10 --upgrade -c requirements/base.txt requirements/docs.in -o requirements/docs.txt
	$(UV) pip compile --quiet --no-header --generate-hashes --no-deps --python-version 3.10 --upgrade requirements/uv.in -o requirements/uv.txt
	$(UV) pip compile --quiet --no-header --generate-hashes --no-deps --python-version 3.10 requirements/detectron2.in -o requirements/detectron2.txt
	$(UV) pip compile --quiet --no-header --generate-hashes --no-deps --python-version 3.10 --upgrade requirements/panoptic.in -o requirements/panoptic.txt

clean:
	rm -rf $(VENV) output datasets/streetscapes
