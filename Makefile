# make run | test | lint | build | torture | fuzz | bench | screenshots | clean
SHELL := /bin/bash
VENV := .venv
PYTHON := $(VENV)/bin/python
# of tests: they wait for guests, servers and disks, too
WORKERS := $(shell echo $$(($$(nproc) * 3 / 2)))
VARIANTS := torture fuzz threads unchecked uncounted
EXTENSION_SOURCES := setup.py $(wildcard src/blockdev/*.pyx src/blockdev/*.pxd src/blockdev/fingerprint/*.c)

.PHONY: run test torture fuzz lint build setup bench screenshots clean
.SECONDARY:

build: $(VENV)/.built

setup: $(VENV)/.installed

# Debian's own Python, because nbdkit's Python plugin embeds that one.
$(VENV)/.installed: packages.apt pyproject.toml scripts/install
	scripts/install $(VENV)
	touch $@

$(VENV)/.built: $(VENV)/.installed $(EXTENSION_SOURCES)
	flock $(VENV)/.lock scripts/build $(VENV)
	touch $@

# the engine with a hook in its medium, for tests/torture; with sanitizers, for tests/fuzz and tests/engine; without checksums or without statistics, for bench
build/%/.built: $(VENV)/.built
	flock $(VENV)/.lock scripts/build-variant $(VENV) $*
	touch $@

run: build
	scripts/run-demo $(if $(IMAGE),--image "$(IMAGE)")

lint: build
	scripts/lint

# Variants wait for each other, and each has times with one compiler left: lint takes the other core.
test: build
	$(MAKE) --jobs=2 lint $(VARIANTS:%=build/%/.built)
	scripts/test $(PYTHON) $(WORKERS)

torture: build build/torture/.built
	$(PYTHON) -m tests.torture --seeds $(or $(SEEDS),1000)
	$(PYTHON) -m tests.replicate.simulate --seeds $(or $(SEEDS),1000)
	BLOCKDEV_DAMAGES=800 BLOCKDEV_FAULTS_EVERY=1 BLOCKDEV_KILLS=50 BLOCKDEV_POWER_CUTS=20 BLOCKDEV_MAPPED_GIB=64 BLOCKDEV_DISTINCT_MIB=512 $(PYTHON) -m pytest -q tests/torture/test_corruption_sweep.py tests/torture/test_faults.py tests/engine/test_kill.py tests/engine/test_scale.py tests/nbd/test_kill_under_load.py tests/guest/test_power_cut.py
	BLOCKDEV_PROFILE=long $(PYTHON) -m pytest -q -o timeout=3600 tests/engine/test_model.py tests/vmmap/test_model.py
	BLOCKDEV_TARGETS_LONG=1 BLOCKDEV_TARGETS_SNAPSHOTS=200 BLOCKDEV_TARGETS_VMS=50 $(PYTHON) -m pytest -q tests/targets/test_conformance.py tests/targets/test_lockstep.py tests/targets/test_many.py

fuzz: build build/fuzz/.built
	$(PYTHON) -m tests.fuzz $(TARGET) --seconds $(or $(SECONDS),300)

bench: build build/unchecked/.built build/uncounted/.built
	$(PYTHON) -m bench $(if $(QUICK),--quick)

screenshots: build
	$(PYTHON) -m tests.browser.screenshots

clean:
	rm -rf build src/*.egg-info src/blockdev/*.c src/blockdev/*.so $(VENV)/.built
