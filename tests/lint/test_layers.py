"""Imports go down only, and each foreign thing has one room (docs/architecture.md), over .py, .pyx and .pxd."""

from __future__ import annotations

import re

import pytest

from tests.lint.sources import ROOT, imports, module_name, package_sources, shown

# Higher may import lower.  Units of the same level do not know each other.
LEVELS = [
    {"aside", "errors", "constants", "types", "clock", "diagnostics", "priority", "watching", "_sync"},
    {"_statistics"},
    {"_medium", "_nbdkit_guard", "addresses", "locks", "policies", "written"},
    {"_dedup", "beside"},
    {"home"},
    {"_cold", "_spare"},
    {"_nodes", "_segments"},
    {"_log"},
    {"_cow"},
    {"_disk"},
    {"_guest"},
    {"_actions"},
    {"_pool", "records", "superblock"},
    {"_replay", "_check", "_compact", "_accounting", "_exchange", "dedup_file"},
    {"recovery", "maintenance", "findings", "runner", "directory"},
    {"inspection", "compaction", "accounting"},
    {"pool"},
    {"offline"},
    {""},  # the package itself: it names Pool and checks the extensions' versions
    {"engine"},
    {"vmmap"},
    {"hypervisor"},
    {"quiesce"},
    {"transfer"},
    {"targets", "replicate", "schedule", "statistics", "cloudinit", "_nbdkit"},
    {"api"},
    {"cli", "web"},
]
LEVEL_OF = {unit: level for level, units in enumerate(LEVELS) for unit in units}

# library -> the folder or file that may import it
ROOMS = {
    "click": re.compile(r"blockdev\.cli(\.|$)"),
    "asyncssh": re.compile(r"blockdev\.replicate\.\w+$"),
    "rtslib_fb": re.compile(r"blockdev\.targets\.lio$"),
    "rtslib": re.compile(r"blockdev\.targets\.lio$"),
    "libvirt": re.compile(r"blockdev\.hypervisor\.\w+$"),
    "libvirt_qemu": re.compile(r"blockdev\.hypervisor\.\w+$"),
    "pycdlib": re.compile(r"blockdev\.cloudinit\.\w+$"),
    "yaml": re.compile(r"blockdev\.cloudinit\.\w+$"),
    "cryptography": re.compile(r"blockdev\.(api\.certificate|replicate\.packets)$"),
    "jinja2": re.compile(r"blockdev\.web\.rendering$"),
    "nbd": re.compile(r"blockdev\.transfer\.\w+$"),
    "prometheus_client": re.compile(r"blockdev\.statistics\.exposition$"),
}
ONE_FILE = ("rtslib", "rtslib_fb", "libvirt", "libvirt_qemu", "pycdlib", "yaml", "nbd")

CLOCK = re.compile(
    r"\b(time\.(time|time_ns|monotonic|monotonic_ns|perf_counter|perf_counter_ns)\(|datetime\.(now|utcnow|today)\(|clock_gettime\(|gettimeofday\()"
)
SYNC = re.compile(r"\b(os\.fsync|os\.fdatasync|fdatasync|fsync|sync_file_range|syncfs)\(")


def unit_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


@pytest.mark.parametrize("path", package_sources(), ids=shown)
def test_imports_go_down_only(path) -> None:
    unit = unit_of(module_name(path))
    assert unit in LEVEL_OF, f"{shown(path)}: give the unit {unit!r} a level in {__name__}"
    wrong = []
    for found in imports(path):
        other = unit_of(found.module)
        if found.module.split(".")[0] != "blockdev" or other == unit:
            continue
        if LEVEL_OF[other] >= LEVEL_OF[unit]:
            wrong.append(
                f"{shown(path)}:{found.line}: {unit or 'blockdev'} imports {other or 'blockdev'}, which is not below it"
            )
    assert not wrong, "\n".join(wrong)


def importers(library: str) -> list[str]:
    return [
        module_name(path)
        for path in package_sources()
        for found in imports(path)
        if found.module.split(".")[0] == library
    ]


@pytest.mark.parametrize("library", ROOMS)
def test_foreign_library_stays_in_its_room(library: str) -> None:
    modules = set(importers(library))
    assert all(ROOMS[library].match(module) for module in modules), (
        f"{library} is imported by {sorted(modules)}"
    )
    if library in ONE_FILE:
        assert len(modules) <= 1, f"{library} is imported by {sorted(modules)}"


def files_with(pattern: re.Pattern[str]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for path in package_sources():
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if pattern.search(line.split("#")[0]):
                found.setdefault(shown(path), []).append(number)
    return found


def test_only_one_python_file_and_the_statistics_read_the_clock() -> None:
    found = files_with(CLOCK)
    rooms = {"src/blockdev/clock.py", "src/blockdev/_statistics.pxd"}
    assert not set(found) - rooms, f"the clock is read outside {sorted(rooms)}: {found}"


def test_only_the_medium_syncs_files() -> None:
    found = files_with(SYNC)
    rooms = {"src/blockdev/_medium.pyx", "src/blockdev/_medium.pxd"}
    assert not set(found) - rooms, f"fsync and its kin outside {sorted(rooms)}: {found}"


def test_the_levels_name_no_unit_twice() -> None:
    assert sum(len(units) for units in LEVELS) == len(LEVEL_OF)
    assert (ROOT / "src" / "blockdev" / "__init__.py").exists()
