"""A link that cuts: a small proxy before a server that lets requests through, or cuts them before they
arrive, after the server has answered, or half-way through the answer."""

from __future__ import annotations

import random
import socket
import threading
from collections import Counter
from contextlib import suppress

MODES = ("before", "after", "half")


def whole_message(sock: socket.socket) -> bytes:
    "One whole request or answer of HTTP with a Content-Length; empty when the other end has hung up."
    data = b""
    while b"\r\n\r\n" not in data:
        piece = sock.recv(65536)
        if not piece:
            return b""
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    lines = [line.partition(b":") for line in head.lower().split(b"\r\n")]
    size = next((int(value) for name, _, value in lines if name == b"content-length"), 0)
    while len(body) < size:
        piece = sock.recv(65536)
        if not piece:
            return b""
        body += piece
    return head + b"\r\n\r\n" + body


class CutLink:
    "Listens on a port of its own; `share` of the exchanges are cut, in turn in each of the three ways."

    def __init__(self, port: int, share: float = 0.0, seed: int = 0):
        self.target, self.share, self.up, self.tally = port, share, True, Counter()
        self._draw, self._open, self.port = random.Random(seed), set(), 0
        self._listen()
        self.url = f"http://127.0.0.1:{self.port}"

    def _listen(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=64)
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            if not self.up:
                client.close()
                continue
            self._open.add(client)
            threading.Thread(target=self._talk, args=(client,), daemon=True).start()

    def _talk(self, client: socket.socket) -> None:
        with suppress(OSError), client:
            while self.up and (request := whole_message(client)):
                cut = self._draw.random() < self.share
                mode = MODES[self.tally["cut"] % 3] if cut else "through"
                self.tally.update(["cut" if cut else "whole", mode])
                if mode == "before":
                    return
                with socket.create_connection(("127.0.0.1", self.target), timeout=30) as server:
                    server.sendall(request)
                    answer = whole_message(server)
                if mode == "after" or not answer:
                    return
                client.sendall(answer if mode == "through" else answer[: len(answer) - 12])
                if mode == "half":
                    return
        self._open.discard(client)

    def cut(self) -> None:
        "The link is down: whatever is open is cut, and new connections are closed."
        self.up = False
        for client in list(self._open):
            with suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)

    def refuse(self) -> None:
        "The link is down, and connections are refused."
        self.cut()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # or the thread that accepts keeps it open
        self._listener.close()

    def heal(self) -> None:
        self.up = True
        if self._listener.fileno() < 0:
            self._listen()

    def close(self) -> None:
        self.refuse()
