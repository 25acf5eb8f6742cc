"""A local HTTP server that sends, byte for byte, what it is told to, as slowly as it is told to."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

MAX_REQUEST_BYTES = 1 << 20


@dataclass
class Reply:
    """parts: sent one after another, `pause_s` seconds apart. repeat: send the last part until nobody listens."""

    parts: list[bytes]
    pause_s: float = 0.0
    repeat: bool = False
    reset: bool = False
    """end the connection without a goodbye"""


@dataclass
class MeanServer:
    """requests: what was received, head and body."""

    reply: Reply = field(default_factory=lambda: Reply([]))
    requests: list[bytes] = field(default_factory=list)
    url: str = ""

    @contextmanager
    def running(self) -> Iterator[MeanServer]:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
            threading.Thread(target=self._serve, args=(listener,), daemon=True).start()
            yield self
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)

    def _serve(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.settimeout(5)
            request = b""
            while b"\r\n\r\n" not in request and len(request) < MAX_REQUEST_BYTES:
                data = connection.recv(65_536)
                if not data:
                    return
                request += data
            self.requests.append(request)
            for part in self.reply.parts:
                connection.sendall(part)
                time.sleep(self.reply.pause_s)
            while self.reply.repeat:
                connection.sendall(self.reply.parts[-1])
                time.sleep(self.reply.pause_s)
            if self.reply.reset:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
