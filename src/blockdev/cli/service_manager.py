"""Tells a service manager such as systemd that blockdevctl serves (sd_notify(3)): what is ordered after it starts then."""

from __future__ import annotations

import logging
import os
import socket

logger = logging.getLogger(__name__)


def tell_ready() -> None:
    """Nothing without a service manager that wants to know; one that went away is not waited for."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]  # Linux's abstract names
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        try:
            sender.sendto(b"READY=1", socket.MSG_DONTWAIT, address)
        except OSError as error:
            logger.warning("the service manager could not be told that this serves: %s", error.strerror)
