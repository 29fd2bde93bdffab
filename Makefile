# Everything a developer types. PYTHON names another interpreter for a new .venv.
PY = .venv/bin/python
FUZZ_SECONDS = 60

.PHONY: install build lint format test test-all fuzz wheel bench gpu-pack demo clean

install:            ## system packages, .venv, build
	sh .ci/install

build: install      ## the Cython and C extensions, after a change there
	$(PY) -m pip install --quiet --editable '.[dev]'

lint:               ## style and types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format:             ## put the code into the house's form
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

test:               ## four minutes on 2 cores, no network, no GPU; without the slow tests
	$(PY) -m pytest -n 2 --dist loadfile

test-all:           ## every test
	$(PY) -m pytest -m "" -n 2 --dist loadfile

fuzz:               ## FUZZ_SECONDS of each target in tests/fuzz, led by coverage where Atheris is
	$(PY) -c 'import atheris' 2>/dev/null || \
	    $(PY) -m pip install --quiet --only-binary :all: 'atheris>=3' || \
	    echo "Atheris cannot be had here: mutations are random"
	PYTHONPATH=tests:. $(PY) -m fuzz --seconds $(FUZZ_SECONDS)

wheel:              ## source archive and self-contained Linux wheel in dist; needs Debian's archive
	sh .ci/wheel

bench:              ## speed, scaling and memory as JSON under build/bench
	mkdir -p build/bench
	$(PY) benchmarks/speed.py --json build/bench/speed.json
	$(PY) benchmarks/scaling.py --json build/bench/scaling.json --plot build/bench/scaling.svg
	$(PY) benchmarks/memory.py --json build/bench/memory.json

gpu-pack:           ## a training on the videos in DATA, packed for a GPU machine: build/gpu-pack
	$(PY) benchmarks/gpu_pack.py --data $(DATA)

demo:               ## the main job on the shipped clip
	$(PY) -m vcfilter demo

clean:              ## what was built here
	rm -rf build .venv *.egg-info dist vcfilter/_bridge/*.so vcfilter/_native/*.so
