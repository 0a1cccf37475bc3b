"""Build the Cython extensions; everything else about the package is in pyproject.toml.

BLOCKDEV_VARIANT, or BLOCKDEV_DEBUG=1 for debug:
  release     what ships
  debug       bounds checks, the undefined behaviour sanitizer (a finding ends the process) and O(N) verification
  torture     the medium asks a hook, planted bugs can be switched on (tests/torture)
  unchecked   no checksums: what they cost is measured against it (bench)
  uncounted   no statistics: likewise
  threads     the thread sanitizer (tests/engine/test_thread_sanitizer.py)
  fuzz        address and undefined behaviour sanitizers, and calls that tell a fuzzer where it has been (tests/fuzz)
"""

import os
import platform
import sysconfig
from collections.abc import Sequence

from Cython.Build import cythonize
from setuptools import Extension, find_packages, setup

SANITIZE = ["-fsanitize=undefined", "-fno-sanitize-recover=undefined"]
FUZZ = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
THREADS = ["-fsanitize=thread"]
OPTIMIZE = ["-O3", "-g1", "-fno-plt"]
COMPILE_ARGS = {
    "release": OPTIMIZE,
    "debug": ["-O1", "-g", "-DBLOCKDEV_DEBUG=1", *SANITIZE],
    "torture": ["-O1", "-g1", "-DBLOCKDEV_TORTURE=1"],
    "unchecked": [*OPTIMIZE, "-DBLOCKDEV_UNCHECKED=1"],
    "uncounted": [*OPTIMIZE, "-DBLOCKDEV_UNCOUNTED=1"],
    "threads": ["-O1", "-g", *THREADS],
    "fuzz": ["-O1", "-g1", *FUZZ, "-fsanitize-coverage=trace-pc,trace-cmp"],
}
LINK_ARGS = {"debug": SANITIZE, "threads": THREADS, "fuzz": FUZZ}
VARIANT = "debug" if os.environ.get("BLOCKDEV_DEBUG") == "1" else os.environ.get("BLOCKDEV_VARIANT", "release")
DEBUG = VARIANT == "debug"
WARNINGS = ["-Wall", "-Wno-unused-function", "-Wno-sign-compare", "-Wno-maybe-uninitialized"]


def extension(name: str, sources: Sequence[str] = (), **options: list[str]) -> Extension:
    return Extension(
        f"blockdev.{name}",
        [f"src/blockdev/{name}.pyx", *sources],
        extra_compile_args=COMPILE_ARGS[VARIANT] + WARNINGS,
        extra_link_args=["-pthread", *LINK_ARGS.get(VARIANT, [])],
        define_macros=[("_GNU_SOURCE", "1")],
        **options,
    )


# The fingerprint once more for each vector unit that not every CPU has; which is taken is decided at run time.
VECTORS = [f"src/blockdev/fingerprint/{name}.c" for name in ("avx2", "avx512") if platform.machine() == "x86_64"]

# nbdkit loads _nbdkit as its plugin, into a process that has no Python yet: it brings libpython itself.
LIBPYTHON = f"python{sysconfig.get_config_var('LDVERSION')}"
EXTENSIONS = [
    extension("_statistics"),
    extension("_medium"),
    extension("_dedup", VECTORS),
    extension("_cold", libraries=["zstd"]),
    extension("_spare"),
    extension("_nodes"),
    extension("_cow"),
    extension("_segments"),
    extension("_log"),
    extension("_disk"),
    extension("_guest"),
    extension("_actions"),
    extension("_pool"),
    extension("_replay"),
    extension("_check"),
    extension("_compact"),
    extension("_accounting"),
    extension("_exchange", libraries=["crypto"]),
    extension("_nbdkit_guard"),
    extension("_nbdkit", libraries=[LIBPYTHON]),
]

setup(
    packages=[*find_packages("src"), "blockdev.targets"],
    package_dir={"": "src", "blockdev.targets": "targets"},
    ext_modules=cythonize(
        EXTENSIONS,
        include_path=["src"],
        nthreads=os.cpu_count() or 1,
        compiler_directives={
            "language_level": 3,
            "boundscheck": DEBUG,
            "wraparound": False,
            "cdivision": True,
            "initializedcheck": False,
            "freethreading_compatible": False,
        },
    ),
)
