"""Certificates that change while a server runs: the files, and clients that keep connecting meanwhile."""

import ssl
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any, Self

from iostreamsrv.certificates import CertificateAuthority
from tests.support.programs import Client, Program

Files = dict[str, str]
"""A certificate and its key, as ssl_options."""


class Load:
    """Clients that connect, verify, are echoed and go, over and over: how many did, and what failed."""

    def __init__(self, address: tuple[str, int], context: ssl.SSLContext, clients: int = 2) -> None:
        self.served = 0
        self.failures: Counter[str] = Counter()
        self._address = address
        self._context = context
        self._enough = threading.Event()
        self._threads = [threading.Thread(target=self._go_on) for _ in range(clients)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._enough.set()
        for thread in self._threads:
            thread.join()

    def _go_on(self) -> None:
        while not self._enough.is_set():
            try:
                with Client(self._address, tls=self._context) as client:
                    assert client.ask(b"hello\n") == b"hello\n"
                self.served += 1
            except Exception as error:
                self.failures[repr(error)] += 1
            time.sleep(0.002)  # the server and the test need their turns, too


class Rotation:
    """The files of a server, replaced by good ones and by bad ones."""

    def __init__(self, files: Files, authority: CertificateAuthority) -> None:
        self._certfile, self._keyfile = Path(files["certfile"]), Path(files["keyfile"])
        self._authority = authority

    def _put(self, path: Path, content: bytes) -> None:
        path.unlink(missing_ok=True)
        path.touch(0o600)
        path.write_bytes(content)

    def good(self) -> None:
        pair = self._authority.issue("localhost", "127.0.0.1")
        self._put(self._certfile, pair.certificate)
        self._put(self._keyfile, pair.key)

    def half_written(self) -> None:
        self.good()
        content = self._certfile.read_bytes()
        self._put(self._certfile, content[: len(content) // 3])

    def mismatched(self) -> None:
        self.good()
        self._put(self._keyfile, self._authority.issue("localhost").key)

    def unreadable(self) -> None:
        self._keyfile.unlink()  # root reads whatever the permissions are


def serial_number(example: Program, context: ssl.SSLContext) -> str:
    """Of the certificate that a new client gets."""
    with example.client(tls=context) as client:
        assert isinstance(client.socket, ssl.SSLSocket)
        certificate: Any = client.socket.getpeercert()
    number: str = certificate["serialNumber"]
    return number
