"""A client's name that is not ASCII is passed over in silence, in each thread, and nothing of that is left behind."""

import ssl
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from iostreamsrv.certificates import Certificates, client_context, self_signed
from iostreamsrv.sansio.tls import TLSEngine


@pytest.fixture
def context(tmp_path: Path) -> ssl.SSLContext:
    """A context that has a certificate for each name."""
    files: dict[str, Any] = dict(self_signed().write(tmp_path))
    return Certificates({**files, "sni": {"example.org": files}}).context


def ask_for_a_bad_name(context: ssl.SSLContext) -> None:
    server, client = (
        TLSEngine(context, True),
        TLSEngine(client_context({"cert_reqs": ssl.CERT_NONE}), False, "example.org"),
    )
    client.handshake()
    server.feed(client.take_outgoing().replace(b"example.org", b"ex\xe4mple.org"))
    with pytest.raises(ssl.SSLError):
        server.handshake()


def test_the_hook_that_another_one_puts_in_its_place_and_back_does_not_grow(
    context: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", said.append)
    original = sys.unraisablehook
    seen = []

    def meanwhile(connection: ssl.SSLObject, name: str, _: ssl.SSLContext) -> None:
        seen.append(sys.unraisablehook)
        sys.unraisablehook = original if len(seen) % 2 else seen[0]

    context.sni_callback = meanwhile
    for _ in range(4):
        server, client = (
            TLSEngine(context, True),
            TLSEngine(client_context({"cert_reqs": ssl.CERT_NONE}), False, "a.org"),
        )
        client.handshake()
        server.feed(client.take_outgoing())
        server.handshake()
    assert len(seen) == 4
    assert {getattr(hook, "report", None) for hook in seen} == {original}
    ask_for_a_bad_name(context)
    assert said == []


def test_what_other_threads_could_not_raise_is_still_told(
    context: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", said.append)

    class Broken:
        def __del__(self) -> None:
            raise UnicodeDecodeError("ascii", b"\xe4", 0, 1, "of another thread")

    def meanwhile(*_: object) -> None:
        thread = threading.Thread(target=Broken)
        thread.start()
        thread.join()

    context.sni_callback = meanwhile
    server, client = TLSEngine(context, True), TLSEngine(client_context({"cert_reqs": ssl.CERT_NONE}), False, "a.org")
    client.handshake()
    server.feed(client.take_outgoing())
    server.handshake()
    assert [str(unraisable.exc_value.reason) for unraisable in said] == ["of another thread"]


def test_two_threads_that_shake_hands_share_the_hook(context: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", said.append)
    original = sys.unraisablehook
    by_name = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)

    def meanwhile(*_: object) -> None:
        before = sys.unraisablehook
        thread = threading.Thread(target=ask_for_a_bad_name, args=(context,))
        thread.start()
        thread.join()
        assert sys.unraisablehook is before

    by_name.sni_callback = meanwhile
    ask = TLSEngine(client_context({"cert_reqs": ssl.CERT_NONE}), False, "a.org")
    ask.handshake()
    server = TLSEngine(by_name, True)
    server.feed(ask.take_outgoing())
    with pytest.raises(ssl.SSLError, match=r"NO_SHARED_CIPHER|NO_SUITABLE_SIGNATURE_ALGORITHM|no certificate"):
        server.handshake()
    assert said == []
    assert sys.unraisablehook is original
