"""iscsi-test-cu of libiscsi against a LUN, and what it says of each test.  Runs in the guest.

CUnit counts a test that skipped itself as passed; here it is told apart, by what it prints.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

PASSED, SKIPPED, FAILED = "passed", "skipped", "failed"
FAMILY = "ALL"  # each test once: the other families are subsets of it
SECONDS_MAX = 700
PART = re.compile(r"^(?=Suite: |  Test: |Run Summary)", re.MULTILINE)
SUITE = re.compile(r"Suite: (\S+)")
TEST = re.compile(r"  Test: (\S+) \.\.\.")
VERDICT = re.compile(r"passed|FAILED$", re.MULTILINE)


def urls(iqn: str, portals: Sequence[str], lun: int) -> list[str]:
    return [f"iscsi://{portal}/{iqn}/{lun}" for portal in portals]


def run_suite(urls: Sequence[str], initiators: Sequence[str], log: Path) -> dict[str, str]:
    """Every test of the suite, by its name; the LUN's content is lost.  Two URLs are two paths to one LUN."""
    command = ["iscsi-test-cu", "--dataloss", "--allow-sanitize", f"--test={FAMILY}"]
    command += [f"--initiator-name={initiators[0]}", f"--initiator-name-2={initiators[1]}", *urls]
    with open(log, "w") as output:
        subprocess.run(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, timeout=SECONDS_MAX)
    return parse(log.read_text(errors="replace"))


def parse(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    suite = ""
    for part in PART.split(text):
        if match := SUITE.match(part):
            suite = match[1]
        elif match := TEST.match(part):
            found[f"{suite}.{match[1]}"] = _verdict(part)
    assert "Run Summary" in text, f"it did not come to its end: {text[-2000:]}"
    return found


def _verdict(part: str) -> str:
    # the word stands at the end of a line, perhaps after what the test printed
    words = re.findall(r"(?:\.\.\.|^|\s)(passed|FAILED)(?=\s|$)", part, re.MULTILINE)
    assert words, part
    if "FAILED" in words:
        return FAILED
    return SKIPPED if "[SKIPPED]" in part else PASSED
