"""Joins its standard input, a socket, to a Unix socket or HOST:PORT; QEMU starts one for each connection."""

import os
import socket
import sys
import threading

CHUNK_BYTES = 1 << 18


def connect(target: str) -> socket.socket:
    if target.startswith("/"):
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(target)
        return connection
    host, port = target.rsplit(":", 1)
    return socket.create_connection((host, int(port)))


def copy(source: socket.socket, sink: socket.socket) -> None:
    while data := source.recv(CHUNK_BYTES):
        sink.sendall(data)
    sink.shutdown(socket.SHUT_WR)


def main() -> None:
    guest = socket.socket(fileno=os.dup(0))
    server = connect(sys.argv[1])
    threading.Thread(target=copy, args=(guest, server), daemon=True).start()
    copy(server, guest)


main()
