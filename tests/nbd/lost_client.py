"""Clients that die with requests in flight: `python -m tests.nbd.lost_client URI COUNT SEED`."""

from __future__ import annotations

import os
import random
import signal
import sys

import nbd


def die_in_the_middle(uri: str, source: random.Random) -> None:
    """Sends reads and writes of one size, takes a few replies or none, and kills this process."""
    handle = nbd.NBD()
    handle.set_uri_allow_local_file(True)  # a file of TLS keys
    handle.connect_uri(uri)
    size = source.choice([512, 4096, 4096, 65536, 1 << 20])
    for _ in range(source.choice([8, 32, 64])):
        offset = source.randrange(16) * size
        if source.random() < 0.5:
            handle.aio_pread(nbd.Buffer(size), offset)
        else:
            handle.aio_pwrite(
                nbd.Buffer.from_bytearray(bytearray(source.randbytes(16) * (size // 16))), offset
            )
    for _ in range(source.choice([0, 0, 1, 5, 40])):
        handle.poll(0)
    os.kill(os.getpid(), signal.SIGKILL)


def main(uri: str, count: int, seed: int) -> None:
    for number in range(count):
        pid = os.fork()
        if pid == 0:
            try:
                die_in_the_middle(uri, random.Random(seed * 1000 + number))
            except nbd.Error as error:
                print(f"client {number}: {error}", file=sys.stderr)
                os._exit(1)
        _, status = os.waitpid(pid, 0)
        if not os.WIFSIGNALED(status):
            sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
