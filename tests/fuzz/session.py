"""Starts the process that fuzzes one target: its environment, its corpus, its limits; and says how to run a finding again."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from tests.fuzz.targets import Target, target_of

ROOT = Path(__file__).resolve().parents[2]
CORPUS = Path(__file__).with_name("corpus")
BUILT = ROOT / "build" / "fuzz"
GROWN = BUILT / "corpus"  # what long runs found worth keeping; a directory a target
FOUND = BUILT / "found"  # inputs that failed
SANITIZERS = {
    "ASAN_OPTIONS": "detect_leaks=0:verify_asan_link_order=0:intercept_memcmp=0:quarantine_size_mb=32"
    ":max_allocation_size_mb=512:handle_abort=1:malloc_context_size=8",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "PYTHONMALLOC": "malloc",  # so that an overrun of a bytes object is seen
}
# libFuzzer's memory limit looks at ru_maxrss, in which a process has what the one that it was forked from had: here that may be
# a test runner of gigabytes.  The shell is small, and what it runs ends with it.
FROM_A_SMALL_PROCESS = ("sh", "-c", 'setpriv --pdeathsig KILL -- "$@"; exit "$?"', "sh")


class Outcome(NamedTuple):
    """How a session ended."""

    status: int  # 0: nothing was found
    output: str


def make_preload() -> Path:
    """build/fuzz/preload.so, made when it is older than its source."""
    source, made = Path(__file__).with_name("preload.c"), BUILT / "preload.so"
    if not made.exists() or made.stat().st_mtime < source.stat().st_mtime:
        BUILT.mkdir(parents=True, exist_ok=True)
        new = made.with_suffix(f".{os.getpid()}")
        subprocess.run(["gcc", "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-o", new, source], check=True)
        new.rename(made)
    return made


def gcc_library(name: str) -> str:
    return subprocess.run(
        ["gcc", f"-print-file-name={name}"], check=True, capture_output=True, text=True
    ).stdout.strip()


def environment(target: Target, scratch: str) -> dict[str, str]:
    """Of the process: which build of blockdev it imports, and what is loaded in front of everything."""
    made = {**os.environ, "TMPDIR": scratch, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    if target.sanitized:
        if not (BUILT / "blockdev").is_dir():
            raise SystemExit("the extensions are not built for fuzzing: make build/fuzz/.built")
        # libstdc++ is there early because atheris throws C++ exceptions, which the address sanitizer watches
        preload = [str(make_preload()), gcc_library("libasan.so"), gcc_library("libstdc++.so")]
        made.update(SANITIZERS, PYTHONPATH=f"{BUILT}:{ROOT}", LD_PRELOAD=" ".join(preload))
    return made


def flags(name: str, seed: int) -> list[str]:
    """libFuzzer's arguments."""
    target = target_of(name)
    FOUND.mkdir(parents=True, exist_ok=True)
    return [
        f"-seed={seed}",
        f"-max_len={target.bytes_max}",
        f"-timeout={target.seconds_max}",
        f"-rss_limit_mb={target.memory_mib_max}",
        "-reload=0",
        f"-artifact_prefix={FOUND}/{name}-",
        "-print_final_stats=1",
    ]


def run(name: str, arguments: list[str], *, quiet: bool = False) -> Outcome:
    """Run one target with these further arguments of libFuzzer: corpora, or inputs to run once."""
    target = target_of(name)
    with tempfile.TemporaryDirectory(prefix="blockdev-fuzz-", dir="/dev/shm") as scratch:
        command = [*FROM_A_SMALL_PROCESS, sys.executable, "-m", "tests.fuzz.run", name, *arguments]
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment(target, scratch),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        lines = []
        try:
            assert process.stdout is not None
            for line in process.stdout:
                lines.append(line)
                if not quiet:
                    print(line, end="", flush=True)
        finally:
            process.kill()
            process.wait()
    return Outcome(process.returncode, "".join(lines))


def findings(name: str, outcome: Outcome) -> str:
    """What a failed session of a target says of what it found, and how to run it again."""
    lines = outcome.output.splitlines()
    kept = re.findall(r"Test unit written to (\S+)", outcome.output)
    shown = [line for line in lines if not line.startswith(("INFO", "stat::", "#"))][-80:]
    again = [f"again: {sys.executable} -m tests.fuzz {name} --input {path}" for path in kept]
    return "\n".join([*shown, *again])


def fuzz(name: str, seconds: int, seed: int, *, keep: bool = True, quiet: bool = False) -> Outcome:
    """Run the corpus, then fuzz; what is worth keeping goes to build/fuzz/corpus, or with `keep` off nowhere."""
    with tempfile.TemporaryDirectory(prefix="blockdev-fuzz-") as nowhere:
        grown = GROWN / name if keep else Path(nowhere)
        grown.mkdir(parents=True, exist_ok=True)
        limits = [*flags(name, seed), f"-max_total_time={seconds}"]
        return run(name, [*limits, str(grown), str(CORPUS / name)], quiet=quiet)


def merge(name: str) -> Outcome:
    """Add to the corpus in the tree what of the grown one covers more."""
    limits = ["-merge=1", *flags(name, 1), str(CORPUS / name), str(GROWN / name)]
    return run(name, limits, quiet=True)
