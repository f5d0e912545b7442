"""A relay in front of a server on this machine, whose line can be cut, mended, or made slow."""

from __future__ import annotations

import contextlib
import socket
import threading
import time


class Relay:
    """Passes connections on to `port` of the loopback. Begins whole and fast; `close` ends it."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._line = threading.Event()
        self._line.set()
        self.delay = 0.0
        """Seconds by which every piece of an answer is late."""
        self._sockets: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """End what is connected, in the middle of whatever is said, and every new connection at once."""
        self._line.clear()
        for end in list(self._sockets):
            _close(end)

    def mend(self, delay: float = 0.0) -> None:
        """Pass connections on again, with answers late by `delay` seconds."""
        self.delay = delay
        self._line.set()

    def close(self) -> None:
        """End all of it."""
        self.cut()
        _close(self._listener)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client:
            if not self._line.is_set():
                return
            with socket.create_connection(("127.0.0.1", self._target), timeout=10) as server:
                self._sockets |= {client, server}
                asking = threading.Thread(target=self._pass_on, args=(client, server, False), daemon=True)
                asking.start()
                self._pass_on(server, client, True)
                asking.join()
                self._sockets -= {client, server}

    def _pass_on(self, source: socket.socket, sink: socket.socket, late: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if late and self.delay:
                    time.sleep(self.delay)
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


def _close(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()
