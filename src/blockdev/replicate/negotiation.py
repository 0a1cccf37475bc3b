"""What both ends of a channel agree upon before anything else: a version of the protocol, and its features."""

from __future__ import annotations

from functools import cache
from importlib import metadata

from blockdev.errors import UnknownFormat
from blockdev.replicate.control import Hello

VERSIONS = [1]
FEATURES: list[str] = []  # none yet: what a later build adds, both ends must name


@cache
def own_hello() -> Hello:
    return Hello(VERSIONS, FEATURES, f"blockdev {metadata.version('blockdev')}")


def common_version(other: Hello) -> int:
    """The highest version that both ends speak.  UnknownFormat: there is none."""
    common = set(VERSIONS) & set(other.versions)
    if not common:
        spoken = ", ".join(map(str, other.versions)) or "none"
        raise UnknownFormat(
            f"the other end ({other.software}) speaks versions {spoken} of replication, this one {max(VERSIONS)}: "
            "bring the older of them up to date"
        )
    return max(common)


def common_features(other: Hello) -> frozenset[str]:
    return frozenset(FEATURES) & frozenset(other.features)
