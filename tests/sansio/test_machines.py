"""Buffers, reads and TLS engines under programs that hypothesis makes, also ones that no stream would carry out.

They are models, and they are what ``make fuzz`` runs on a core whose memory accesses are checked. So they do what is
dangerous in C: keep views of a buffer, resize one that is read into, change the buffer from within a match function.
"""

import functools
import re
import ssl
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from iostreamsrv.certificates import Certificates, client_context, self_signed
from iostreamsrv.errors import OptionError, UnsatisfiableReadError
from iostreamsrv.sansio.buffers import ReadBuffer
from iostreamsrv.sansio.reads import (
    MORE,
    Discard,
    ReadBytes,
    ReadFailed,
    ReadInto,
    ReadMatch,
    ReadPartial,
    ReadUntil,
    ReadUntilRegex,
)
from iostreamsrv.sansio.tls import BULK, RECORD, TLSEngine, Truncated
from tests.support.tiers import generated

LETTERS = b"ab\r\n"
texts = st.binary(max_size=12).map(lambda chunk: bytes(LETTERS[byte % 4] for byte in chunk))
large = st.builds(lambda text, times: text * times, texts, st.integers(1, 9000))
chunks = st.one_of(texts, texts, large).filter(len)
counts = st.one_of(st.integers(1, 20), st.integers(1, 100_000))
delimiters = st.sampled_from([b"\n", b"\r\n", b"ab", b"aba"])


class Reads(RuleBasedStateMachine):
    """A read buffer is a string of bytes, whatever reads from it."""

    def __init__(self) -> None:
        super().__init__()
        self.buffer = ReadBuffer()
        self.model = b""
        self.views: list[tuple[memoryview, bytes]] = []
        self.into: ReadInto | None = None
        self.target = bytearray()

    @rule(chunk=chunks)
    def feed(self, chunk: bytes) -> None:
        self.buffer.feed(chunk)
        self.model += chunk

    @rule(delimiter=delimiters, most=st.none() | st.integers(1, 30))
    def until(self, delimiter: bytes, most: int | None) -> None:
        end = self.model.find(delimiter) + len(delimiter) if delimiter in self.model else len(self.model)
        read = ReadUntil.of(delimiter, most)
        try:
            result = read.take(self.buffer)
        except UnsatisfiableReadError:
            assert most is not None
            assert end > most
            return
        assert most is None or end <= most
        self._took(result, self.model[:end] if delimiter in self.model else None)

    @rule(pattern=st.sampled_from([rb"a\r", rb"\r?\n", rb"a*b"]), most=st.integers(1, 30))
    def regex(self, pattern: bytes, most: int) -> None:
        found = re.search(pattern, self.model[:most])
        try:
            self._took(ReadUntilRegex.of(pattern, most).take(self.buffer), found and self.model[: found.end()])
        except UnsatisfiableReadError:
            assert found is None
            assert len(self.model) > most

    @rule(count=counts)
    def exactly(self, count: int) -> None:
        whole = len(self.model) >= count
        self._took(ReadBytes.of(count).take(self.buffer), self.model[:count] if whole else None)

    @rule(count=counts)
    def partial(self, count: int) -> None:
        self._took(ReadPartial.of(count).take(self.buffer), self.model[:count] or None)

    def _took(self, result: Any, expected: bytes | None) -> None:
        if expected is None:
            assert result is MORE
            return
        assert type(result) is bytes
        assert result == expected
        self.model = self.model[len(expected) :]

    @precondition(lambda self: not self.model)
    @rule(chunk=chunks, delimiter=delimiters)
    def accept(self, chunk: bytes, delimiter: bytes) -> None:
        whole = chunk.find(delimiter) + len(delimiter) == len(chunk) and delimiter in chunk
        assert ReadUntil.of(delimiter, None).accept(chunk) == (chunk if whole else MORE)

    @rule(count=counts)
    def unread(self, count: int) -> None:
        text = b"ab\r\n" * (count // 4 + 1)
        self.buffer.unread(text)
        self.model = text + self.model

    @rule(count=st.integers(0, 20))
    def truncate(self, count: int) -> None:
        self.buffer.truncate(count)
        self.model = self.model[:count]

    @rule(keep=st.integers(0, 5), more=chunks, limit=st.integers(1, 50))
    def discard(self, keep: int, more: bytes, limit: int) -> None:
        self.truncate(keep)
        read = Discard(self.buffer, limit)
        self.buffer.feed(more)
        assert read.take(self.buffer) is (MORE if len(more) < limit else None)

    @precondition(lambda self: self.model)
    @rule()
    def keep_a_view(self) -> None:
        """The buffer leaves that object as it is."""
        view = memoryview(self.buffer.contents())
        self.views.append((view, bytes(view)))

    @precondition(lambda self: self.views)
    @rule(which=st.integers(0, 100))
    def release_a_view(self, which: int) -> None:
        view, content = self.views.pop(which % len(self.views))
        assert view[: len(content)] == content
        view.release()

    @rule(consumed=st.one_of(st.integers(-1, 20), st.just(1 << 70)), then=st.sampled_from(["more", "result", "raise"]))
    def match(self, consumed: int, then: str) -> None:
        calls = 0

        def found(buffer: bytearray) -> tuple[int, Any] | None:
            nonlocal calls
            calls += 1
            assert buffer == self.model
            if then == "raise":
                raise ValueError
            if not 0 <= consumed <= len(self.model):
                return consumed, None
            self.model = self.model[consumed:]
            return consumed, MORE if then == "more" and calls < 30 else "it"

        read = ReadMatch(found)
        try:
            result = read.take(self.buffer)
        except ReadFailed as failed:
            assert isinstance(failed.error, ValueError if then == "raise" else OptionError)
        else:
            assert result == "it" or (result is MORE and (not self.model or read.unfinished or not consumed))

    @rule(step=st.sampled_from(["clear", "take", "feed", "truncate", "append", "empty"]), consumed=st.integers(0, 50))
    def match_that_changes_the_buffer(self, step: str, consumed: int) -> None:
        """No promise holds afterwards, but that it is a buffer."""
        steps: dict[str, Callable[[bytearray], Any]] = {
            "clear": lambda _: self.buffer.clear(),
            "take": lambda _: self.buffer.take(1),
            "feed": lambda _: self.buffer.feed(b"ab" * 3000),
            "truncate": lambda _: self.buffer.truncate(1),
            "append": lambda content: content.extend(b"x" * 5000),
            "empty": lambda content: content.clear(),
        }

        def found(content: bytearray) -> tuple[int, Any] | None:
            steps[step](content)
            return consumed, "it"

        try:
            ReadMatch(found).take(self.buffer)
        except (ReadFailed, BufferError):
            pass
        self.buffer.clear()
        self.model = b""

    @precondition(lambda self: self.into is None)
    @rule(size=st.one_of(st.integers(1, 20), st.integers(1, 100_000)), partial=st.booleans())
    def begin_into(self, size: int, partial: bool) -> None:
        self.target = bytearray(size)
        self.into = ReadInto(self.target, partial)

    @precondition(lambda self: self.into is not None)
    @rule()
    def go_on_into(self) -> None:
        assert self.into is not None
        before = self.into.filled
        try:
            result = self.into.take(self.buffer)
        except ReadFailed as failed:
            assert isinstance(failed.error, BufferError)
            assert len(self.target) < before
            self.into = None
            return
        now = self.into.filled
        assert self.target[before:now] == self.model[: now - before]
        self.model = self.model[now - before :]
        if result is not MORE:
            assert result == now
            self.into = None

    @precondition(lambda self: self.into is not None)
    @rule(size=st.one_of(st.integers(0, 20), st.integers(0, 200_000)))
    def resize_the_target(self, size: int) -> None:
        """No view of it is kept between two calls."""
        if size < len(self.target):
            del self.target[size:]
        else:
            self.target.extend(bytes(size - len(self.target)))

    @precondition(lambda self: self.into is not None)
    @rule()
    def abandon_into(self) -> None:
        assert self.into is not None
        back = bytes(self.target[: self.into.filled])
        self.into.abandon(self.buffer)
        self.into = None
        self.model = back + self.model

    @invariant()
    def it_is_a_string_of_bytes(self) -> None:
        assert self.buffer.size == len(self.model)
        for view, content in self.views:
            assert view[: len(content)] == content

    def teardown(self) -> None:
        assert self.buffer.contents() == self.model


@functools.cache
def contexts(version: ssl.TLSVersion) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's and a client's."""
    with tempfile.TemporaryDirectory() as folder:
        server = Certificates(self_signed().write(Path(folder))).context
    client = client_context({"cert_reqs": ssl.CERT_NONE})
    client.maximum_version = version
    return server, client


ENDS = (0, 1)
ends = st.sampled_from(ENDS)


class TLS(RuleBasedStateMachine):
    """Two engines, and between them two wires that deliver in any pieces, and may be cut or bent."""

    @initialize(
        version=st.sampled_from([ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]),
        much=st.sampled_from([False, False, False, True]),
    )
    def begin(self, version: ssl.TLSVersion, much: bool) -> None:
        server, client = contexts(version)
        self.engines = TLSEngine(server, True), TLSEngine(client, False)
        self.wires = [b"", b""]  # from each end
        self.said = [b"", b""]  # by each end, and not read yet
        self.bent = [False, False]
        self.closed = [False, False]
        self.ended = [False, False]  # the input of each end
        done = False
        while not done:
            done = self.engines[1].handshake()
            self._carry(1)
            done = self.engines[0].handshake() and done
            self._carry(0)
        if much:
            for _ in range(BULK // 65536 + 1):
                for end in ENDS:
                    self.engines[end].write(bytes(65536))
                    self._carry(end)
                    while self.engines[1 - end].read(65536):
                        pass

    def _carry(self, end: int) -> None:
        self.engines[1 - end].feed(self.engines[end].take_outgoing())

    @rule(
        end=ends,
        size=st.one_of(st.integers(0, 100), st.integers(0, 70_000), st.just(RECORD)),
        kind=st.sampled_from([bytes, bytearray, memoryview]),
        letter=st.integers(0, 255),
    )
    def write(self, end: int, size: int, kind: type[bytes], letter: int) -> None:
        if self.closed[end]:
            return
        data = bytes([letter]) * size
        try:
            self.engines[end].write(kind(data))
        except ssl.SSLError:
            assert self.bent[1 - end] or self.closed[1 - end]
            self.closed[end] = True
            return
        self.said[end] += data
        self.wires[end] += self.engines[end].take_outgoing()

    @rule(end=ends, size=st.one_of(st.integers(1, 30), st.integers(1, 200_000)), kind=st.sampled_from(["", "view"]))
    def deliver(self, end: int, size: int, kind: str) -> None:
        self.wires[end] += self.engines[end].take_outgoing()
        piece, self.wires[end] = self.wires[end][:size], self.wires[end][size:]
        if not piece or self.ended[1 - end]:
            return
        if kind == "view":  # of memory that is used again
            memory = bytearray(piece)
            with memoryview(memory) as view:
                self.engines[1 - end].feed(view)
                self.engines[1 - end].copy_input()
            memory[:] = bytes(len(memory))
            memory.clear()
        else:
            self.engines[1 - end].feed(piece)

    @rule(end=ends, size=st.one_of(st.integers(1, 100), st.integers(1, 100_000)), how=st.sampled_from(["read", "into"]))
    def read(self, end: int, size: int, how: str) -> None:
        try:
            got: bytes | None
            if how == "into":
                space = bytearray(size)
                with memoryview(space) as view:
                    count = self.engines[end].read_into(view)
                got = None if count is None else bytes(space[:count])
            else:
                got = self.engines[end].read(size)
        except Truncated:
            assert self.ended[end]
        except ssl.SSLError:
            assert self.bent[1 - end]
        else:
            if got == b"":
                assert self.closed[1 - end]
            elif got is not None:
                assert len(got) <= size
                assert self.said[1 - end].startswith(got)
                self.said[1 - end] = self.said[1 - end][len(got) :]

    @rule(end=ends, size=st.integers(1, 100_000))
    def decrypt(self, end: int, size: int) -> None:
        """All that is under way, in one call."""
        self.wires[1 - end] += self.engines[1 - end].take_outgoing()
        if self.engines[end].has_input or self.ended[end] or not self.wires[1 - end]:
            return
        ciphertext, self.wires[1 - end] = self.wires[1 - end], b""
        try:
            got = self.engines[end].decrypt(ciphertext, size)
        except ssl.SSLError:
            assert self.bent[1 - end]
            return
        if got:
            assert self.said[1 - end].startswith(got)
            self.said[1 - end] = self.said[1 - end][len(got) :]
        elif got is not None:
            assert self.closed[1 - end]

    @precondition(lambda self: any(self.wires))
    @rule(end=ends, where=st.integers(0, 100_000), bit=st.integers(0, 7))
    def bend(self, end: int, where: int, bit: int) -> None:
        if self.wires[end]:
            wire = bytearray(self.wires[end])
            wire[where % len(wire)] ^= 1 << bit
            self.wires[end] = bytes(wire)
            self.bent[end] = True

    @rule(end=ends)
    def close(self, end: int) -> None:
        self.engines[end].close()
        self.closed[end] = True

    @rule(end=ends)
    def cut(self, end: int) -> None:
        """The input of this end is over."""
        self.engines[end].feed_end()
        self.ended[end] = True

    @invariant()
    def what_is_held_is_counted(self) -> None:
        for engine in getattr(self, "engines", ()):
            assert engine.undecrypted >= 0


TestReads = Reads.TestCase
TestReads.settings = generated(20, 300, stateful_step_count=50)
TestTLS = TLS.TestCase
TestTLS.settings = generated(20, 200, stateful_step_count=40)
