"""A real engine without NBD in a process of its own: a pool and its engine socket, until its standard input closes.

usage: python -m tests.engine_socket.engine_main POOL SOCKET [DIE_AT]     (DIE_AT: such as create:after)
"""

from __future__ import annotations

import os
import sys

from blockdev import Pool
from blockdev.engine.attachments import Attachments
from blockdev.engine.server import EngineServer

DIED_AS_TOLD = 77


def main(pool_path: str, socket_path: str, die_at: str = "") -> None:
    """Serve; end at once, without a word to the client, when the step `die_at` is reached."""

    def at_step(step: str) -> None:
        if step == die_at:
            os._exit(DIED_AS_TOLD)

    pool = Pool.open(pool_path)
    server = EngineServer(pool, Attachments(), socket_path, plugin="none", at_step=at_step)
    server.start()
    print("ready", flush=True)
    sys.stdin.read()
    server.stop()
    pool.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
