"""Runs in the guest: compares file systems with a plan (JSON), a list of entries, and changes those that it may.

An entry: `device`; `files`, name to SHA-256; `names`, directory to the names that it may hold; `writable`. A writable
one is changed after the look, unmounted and checked by e2fsck. Prints a line for each difference.
"""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path("/mnt")


def differences(entry: dict[str, Any]) -> list[str]:
    found = []
    for name, digest in entry["files"].items():
        path = ROOT / name
        if not path.exists():
            found.append(f"{name} is missing")
        elif hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            found.append(f"{name} differs")
    for directory, names in entry["names"].items():
        found += [
            f"{directory}/{name} is too much" for name in set(os.listdir(ROOT / directory)) - set(names)
        ]
    return found


def change() -> None:
    for path in sorted(ROOT.rglob("*")):
        if path.is_file():
            path.write_bytes(b"changed in the clone\n" * 500)
    (ROOT / "cloned").write_bytes(os.urandom(1 << 20))


def check(entry: dict[str, Any]) -> list[str]:
    device, writable = entry["device"], entry["writable"]
    is_read_only = Path("/sys/block", Path(device).name, "ro").read_text().strip() == "1"
    subprocess.run(["mount", "-o", "rw" if writable else "ro", device, ROOT], check=True)
    found = differences(entry)
    if is_read_only == writable:
        found.append(f"read-only is {is_read_only}")
    if writable:
        change()
    subprocess.run(["umount", ROOT], check=True)
    fsck = subprocess.run(["e2fsck", "-fn", device], capture_output=True, text=True)
    if fsck.returncode != 0:
        found.append(f"e2fsck: {fsck.stdout}")
    return [f"{device}: {difference}" for difference in found]


def main() -> None:
    found = [difference for entry in json.loads(Path(sys.argv[1]).read_text()) for difference in check(entry)]
    print("\n".join(found))
    sys.exit(bool(found))


main()
