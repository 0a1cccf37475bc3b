"""What both ends say of SSH: which algorithms, which limits, and nothing from files, agents or settings of a user."""

from __future__ import annotations

import logging
from typing import Any

import asyncssh

from blockdev.replicate.keys import TYPE

SUBSYSTEM = "blockdev-replication"
USER = "blockdev"  # who connects is known by his key; pairing.USER is the other one
KEY_EXCHANGES = ("mlkem768x25519-sha256", "curve25519-sha256")  # the first is safe from quantum computers, too
CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "chacha20-poly1305@openssh.com")  # the fastest first
LOGIN_SECONDS_MAX = 20.0
KEEPALIVE_SECONDS, KEEPALIVES_MAX = 15.0, 3  # a dead link is told after a minute


def options() -> dict[str, Any]:
    """What is the same for asyncssh.connect and asyncssh.listen."""
    asyncssh.set_log_level(logging.WARNING)  # below, it tells of every packet and of every stranger
    there = {name.decode() for name in asyncssh.kex.get_kex_algs()}
    return {
        "config": None,
        "kex_algs": [name for name in KEY_EXCHANGES if name in there],
        "encryption_algs": list(CIPHERS),
        "mac_algs": ["hmac-sha2-256-etm@openssh.com"],  # none of these ciphers uses it
        "signature_algs": [TYPE],
        "compression_algs": None,  # blocks are compressed already
        "x509_trusted_certs": None,
        "gss_host": None,
        "agent_forwarding": False,
        "host_based_auth": False,
        "kbdint_auth": False,
        "login_timeout": LOGIN_SECONDS_MAX,
        "keepalive_interval": KEEPALIVE_SECONDS,
        "keepalive_count_max": KEEPALIVES_MAX,
        "encoding": None,
    }
