"""`iostreamsrv.sansio.buffers`: promises of the two buffers."""

import io
import re
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iostreamsrv.sansio.buffers import BY_REFERENCE, SMALL_WRITE, ReadBuffer, WriteBuffer
from iostreamsrv.streams.file_region import FileRegion
from tests.support.tiers import crossed, generated


def filled(*chunks: bytes) -> ReadBuffer:
    buffer = ReadBuffer()
    for chunk in chunks:
        buffer.feed(chunk)
    return buffer


def rest(buffer: ReadBuffer) -> bytes:
    return bytes(buffer.contents())


# ---- ReadBuffer


def test_a_chunk_taken_whole_is_never_copied() -> None:
    chunk = b"GET /\n"
    assert filled(chunk).take(6) is chunk


def test_take_returns_the_first_bytes_and_keeps_the_rest() -> None:
    buffer = filled(b"abcdef")
    assert buffer.take(2) == b"ab"
    assert buffer.take(3) == b"cde"
    assert buffer.size == 1
    assert rest(buffer) == b"f"


def test_take_goes_across_chunks() -> None:
    buffer = filled(b"ab", b"cd", b"ef")
    assert buffer.take(3) == b"abc"
    assert buffer.take(3) == b"def"
    assert buffer.size == 0


def test_what_is_taken_is_bytes_even_from_a_joined_buffer() -> None:
    buffer = filled(b"ab", b"cd")
    assert type(buffer.take(2)) is bytes
    assert type(buffer.take(2)) is bytes


def test_feed_after_a_partial_take_continues_where_it_was() -> None:
    buffer = filled(b"abcd")
    buffer.take(3)
    buffer.feed(b"ef")
    assert rest(buffer) == b"def"


def test_feed_leaves_a_view_of_the_contents_that_somebody_kept_as_it_was() -> None:
    buffer = filled(b"ab", b"cd")
    view = memoryview(buffer.contents())
    buffer.feed(b"ef")
    assert bytes(view) == b"abcd"
    assert buffer.take(6) == b"abcdef"


def test_contents_leave_a_view_of_them_that_somebody_kept_as_it_was() -> None:
    buffer = filled(b"ab", b"cd")
    view = memoryview(buffer.contents())
    buffer.take(1)
    assert rest(buffer) == b"bcd"
    assert bytes(view) == b"abcd"


def test_take_until_includes_the_delimiter() -> None:
    buffer = filled(b"one\ntwo\n")
    assert buffer.take_until(b"\n", None) == b"one\n"
    assert buffer.take_until(b"\n", None) == b"two\n"
    assert buffer.take_until(b"\n", None) is None


def test_take_until_finds_a_delimiter_that_was_split() -> None:
    buffer = filled(b"one\r")
    assert buffer.take_until(b"\r\n", None) is None
    buffer.feed(b"\ntwo")
    assert buffer.take_until(b"\r\n", None) == b"one\r\n"
    assert rest(buffer) == b"two"


def test_take_until_finds_a_delimiter_longer_than_all_there_was() -> None:
    delimiter = b"-----"
    buffer = filled(b"-")
    assert buffer.take_until(delimiter, None) is None
    buffer.feed(b"----")
    assert buffer.take_until(delimiter, None) == delimiter


def test_take_until_never_searches_a_byte_twice() -> None:
    needle = b"\n"
    buffer = filled(b"abc")
    assert buffer.take_until(needle, None) is None
    # A needle slipped into what was searched is not found: proof that nobody looks there again.
    buffer.contents()[0:1] = needle
    buffer.feed(b"def")
    assert buffer.take_until(needle, None) is None
    buffer.feed(needle)
    assert buffer.take_until(needle, None) == b"\nbcdef\n"


def test_take_until_searches_from_the_beginning_for_another_delimiter() -> None:
    buffer = filled(b"a;b")
    assert buffer.take_until(b"\n", None) is None
    assert buffer.take_until(b";", None) == b"a;"


def test_take_until_searches_anew_after_bytes_were_taken() -> None:
    needle = b"\n"
    buffer = filled(b"abcd")
    assert buffer.take_until(needle, None) is None
    assert buffer.take(4) == b"abcd"
    buffer.feed(b"\nx")
    assert buffer.take_until(needle, None) == b"\n"


def test_take_until_goes_on_behind_bytes_that_were_taken_after_a_search() -> None:
    needle = b"\r\n"
    buffer = filled(b"ab\r")
    assert buffer.take_until(needle, None) is None
    assert buffer.take(3) == b"ab\r"
    buffer.feed(b"\n\r\n")
    assert buffer.take_until(needle, None) == b"\n\r\n"


@pytest.mark.parametrize("take", [1, 3])
def test_take_until_keeps_its_place_when_the_front_is_taken(take: int) -> None:
    needle = b"\n"
    buffer = filled(b"abc", b"def")
    assert buffer.take_until(needle, None) is None
    buffer.take(take)
    buffer.feed(b"\n")
    assert buffer.take_until(needle, None) == b"abcdef\n"[take:]


def test_take_until_takes_a_delimiter_that_ends_at_the_limit() -> None:
    assert filled(b"abc\n").take_until(b"\n", 4) == b"abc\n"


def test_take_until_waits_while_the_limit_is_not_passed() -> None:
    assert filled(b"abcd").take_until(b"\n", 4) is None


@pytest.mark.parametrize("content", [b"abc\n", b"abcd"])
def test_take_until_overflows_beyond_the_limit_and_loses_nothing(content: bytes) -> None:
    buffer = filled(content)
    with pytest.raises(OverflowError):
        buffer.take_until(b"\n", 3)
    assert buffer.take(4) == content


def test_the_limit_of_take_until_counts_from_the_first_unread_byte() -> None:
    buffer = filled(b"one\ntwo\n")
    assert buffer.take_until(b"\n", 4) == b"one\n"
    assert buffer.take_until(b"\n", 4) == b"two\n"


def test_search_gives_the_end_of_the_first_match() -> None:
    buffer = filled(b"a1b22c")
    buffer.take(1)
    assert buffer.search(re.compile(rb"\d+b"), 10) == 2
    assert buffer.search(re.compile(rb"x"), 10) == -1


def test_search_looks_at_no_more_than_the_limit() -> None:
    buffer = filled(b"aaab")
    assert buffer.search(re.compile(rb"b"), 3) == -1
    assert buffer.search(re.compile(rb"b"), 4) == 4


def test_unread_puts_bytes_back_in_front() -> None:
    buffer = filled(b"abcdef")
    taken = buffer.take(3)
    buffer.unread(taken)
    assert buffer.size == 6
    assert buffer.take(6) == b"abcdef"


def test_unread_into_an_empty_buffer() -> None:
    buffer = ReadBuffer()
    buffer.unread(b"")
    assert buffer.size == 0
    buffer.unread(b"ab\n")
    assert buffer.take_until(b"\n", None) == b"ab\n"


def test_a_delimiter_in_unread_bytes_is_found() -> None:
    needle = b"\n"
    buffer = filled(b"ab")
    assert buffer.take_until(needle, None) is None
    buffer.unread(b"x\n")
    assert buffer.take_until(needle, None) == b"x\n"


def test_truncate_forgets_the_end() -> None:
    buffer = filled(b"abc", b"def")
    buffer.take(1)
    buffer.truncate(2)
    assert buffer.size == 2
    assert rest(buffer) == b"bc"


def test_truncate_to_more_than_there_is_changes_nothing() -> None:
    buffer = filled(b"abc")
    buffer.truncate(3)
    buffer.truncate(9)
    assert buffer.take(3) == b"abc"


def test_a_delimiter_is_found_in_what_follows_a_truncation() -> None:
    needle = b"\n"
    buffer = filled(b"abcd")
    assert buffer.take_until(needle, None) is None
    buffer.truncate(1)
    buffer.feed(b"\nx")
    assert buffer.take_until(needle, None) == b"a\n"


def test_clear_forgets_everything() -> None:
    buffer = filled(b"abc", b"def")
    buffer.clear()
    assert buffer.size == 0
    assert rest(buffer) == b""


CHUNKS = st.lists(st.binary(min_size=1, max_size=6).map(lambda chunk: bytes(b"ab\r\n"[byte % 4] for byte in chunk)))
STEPS = st.sampled_from(["take", "until", "until2", "search", "unread", "truncate"])


@generated(30, 300)
@given(st.lists(st.tuples(CHUNKS, STEPS, st.integers(1, 5)), max_size=12))
def test_a_read_buffer_is_a_string_of_bytes_however_it_is_fed(program: list[tuple[list[bytes], str, int]]) -> None:
    buffer = ReadBuffer()
    model = b""
    for chunks, step, number in program:
        for chunk in chunks:
            buffer.feed(chunk)
            model += chunk
        if step == "take":
            count = min(number, len(model))
            if count:
                assert buffer.take(count) == model[:count]
            model = model[count:]
        elif step in ("until", "until2"):
            needle = b"\r\n" if step == "until2" else b"\n"
            end = model.find(needle) + len(needle)
            expected = model[:end] if needle in model else None
            assert buffer.take_until(needle, None) == expected
            model = model[end:] if expected else model
        elif step == "search":
            match = re.search(rb"a\r", model[:number])
            assert buffer.search(re.compile(rb"a\r"), number) == (match.end() if match else -1)
        elif step == "unread":
            buffer.unread(b"\r\nab"[:number])
            model = b"\r\nab"[:number] + model
        else:
            buffer.truncate(number)
            model = model[:number]
        assert buffer.size == len(model)
    assert rest(buffer) == model


# ---- WriteBuffer


def sent(buffer: WriteBuffer, at_once: int = 1 << 30) -> bytes:
    """What leaves the buffer, ``at_once`` bytes at a time."""
    left = b""
    while buffer.size:
        piece = first(buffer)[:at_once]
        buffer.advance(len(piece))
        left += piece
    return left


def first(buffer: WriteBuffer) -> bytes:
    """The piece that is to leave next."""
    piece = buffer.peek()
    if isinstance(piece, FileRegion):
        return piece.read(piece.left)
    with piece:
        return bytes(piece)


def region(content: bytes, offset: int = 0) -> FileRegion:
    return FileRegion(io.BytesIO(content), offset)


def test_small_writes_leave_in_one_piece() -> None:
    buffer = WriteBuffer()
    for _ in range(3):
        buffer.append(b"ab")
    assert buffer.size == 6
    with buffer.peek() as view:
        assert view == b"ababab"


def test_large_bytes_are_kept_by_reference() -> None:
    large = bytes(SMALL_WRITE)
    buffer = WriteBuffer()
    buffer.append(large)
    with buffer.peek() as view:
        assert view.obj is large


@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_a_view_of_large_bytes_is_kept_by_reference(kind: Any) -> None:
    large = kind(SMALL_WRITE + 1)
    buffer = WriteBuffer()
    buffer.append(memoryview(large)[1:])
    with buffer.peek() as view:
        assert view.obj is large
        assert len(view) == SMALL_WRITE


@pytest.mark.parametrize("view, size", [(False, 4), (False, SMALL_WRITE), (True, 4), (True, SMALL_WRITE - 1)])
def test_what_the_caller_may_change_is_copied(view: bool, size: int) -> None:
    data: Any = bytearray(b"x" * size)
    data = memoryview(data) if view else data
    buffer = WriteBuffer()
    buffer.append(data)
    data[0:1] = b"!"
    assert sent(buffer) == b"x" * size


def test_an_empty_write_adds_nothing() -> None:
    buffer = WriteBuffer()
    buffer.append(b"")
    assert buffer.size == 0
    buffer.append(b"a")
    buffer.append(b"")
    assert sent(buffer) == b"a"


def test_a_small_write_behind_a_large_one_keeps_its_place() -> None:
    large = b"x" * SMALL_WRITE
    buffer = WriteBuffer()
    for data in (b"a", large, b"b", b"c", large, b"d"):
        buffer.append(data)
    assert sent(buffer) == b"a" + large + b"bc" + large + b"d"


def test_bytes_are_kept_by_reference_unless_a_reference_costs_more() -> None:
    small, smallest = b"x" * BY_REFERENCE, b"y" * (BY_REFERENCE - 1)
    buffer = WriteBuffer()
    buffer.append(small)
    with buffer.peek() as view:
        assert view.obj is small
    buffer.append(smallest)
    buffer.advance(BY_REFERENCE)
    with buffer.peek() as view:
        assert view.obj is not smallest
        assert view == smallest


def test_small_writes_are_joined_when_they_leave_as_far_as_they_are_one_send() -> None:
    buffer = WriteBuffer()
    for _ in range(70):
        buffer.append(b"x" * 1_000)
    with buffer.peek() as view:
        assert len(view) == 65_000
    assert len(sent(buffer)) == 70_000


def test_a_piece_that_has_begun_to_leave_is_not_copied_again() -> None:
    buffer = WriteBuffer()
    buffer.append(b"x" * 1_000)
    buffer.append(b"y" * 1_000)
    with buffer.peek() as view:
        joined = view.obj
    buffer.advance(1)
    buffer.append(b"z" * 1_000)
    with buffer.peek() as view:
        assert view.obj is joined
    assert sent(buffer) == b"x" * 999 + b"y" * 1_000 + b"z" * 1_000


@pytest.mark.parametrize(
    ("sizes", "kind"),
    crossed([[1], [63], [64], [100], [1, 64], [63, 63, 64], [20_000], [50_000, 1]], [bytes, bytearray]),
)
def test_a_write_buffer_takes_no_more_memory_than_it_says(sizes: list[int], kind: type[bytes]) -> None:
    buffer = WriteBuffer()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        while buffer.size + buffer.overhead < 1 << 18:
            for size in sizes:
                buffer.append(kind(size))
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert taken < buffer.size + buffer.overhead + 16_384
    buffer.truncate(0)
    assert not buffer.overhead


def test_advance_goes_on_within_a_piece() -> None:
    buffer = WriteBuffer()
    buffer.append(b"abcdef")
    buffer.advance(2)
    assert buffer.size == 4
    buffer.append(b"gh")
    assert sent(buffer, 3) == b"cdefgh"


@pytest.mark.parametrize("kept", range(7))
@pytest.mark.parametrize("gone", range(3))
def test_truncate_keeps_the_first_bytes_that_have_not_left(kept: int, gone: int) -> None:
    large = b"x" * SMALL_WRITE
    kept_bytes = [0, 1, 4, 4 + SMALL_WRITE - 1, 4 + SMALL_WRITE, 4 + SMALL_WRITE + 1, 4 + SMALL_WRITE + 2][kept]
    buffer = WriteBuffer()
    for data in (b"abcd", large, b"ef"):
        buffer.append(data)
    if gone:
        buffer.advance(gone)
    expected = (b"abcd" + large + b"ef")[gone:][:kept_bytes]
    buffer.truncate(kept_bytes)
    assert buffer.size == len(expected)
    buffer.append(b"!")
    assert sent(buffer) == expected + b"!"


def test_truncate_to_more_than_there_is_changes_nothing_in_a_write_buffer() -> None:
    buffer = WriteBuffer()
    buffer.append(b"abc")
    buffer.truncate(3)
    buffer.truncate(5)
    assert sent(buffer) == b"abc"


# ---- WriteBuffer, with parts of files


def test_a_part_of_a_file_keeps_its_place() -> None:
    buffer = WriteBuffer()
    buffer.append(b"ab")
    buffer.append_file(region(b"FILE"))
    buffer.append(b"cd")
    buffer.append(b"ef")
    buffer.append_file(region(b"_FILE", 1))
    buffer.append_file(region(b"LAST"))
    assert (buffer.size, buffer.in_files) == (18, 12)
    assert sent(buffer, 3) == b"abFILEcdefFILELAST"
    assert (buffer.size, buffer.in_files) == (0, 0)


def test_the_first_piece_may_be_a_file_itself() -> None:
    part = region(b"FILE")
    buffer = WriteBuffer()
    buffer.append_file(part)
    assert buffer.peek() is part
    buffer.advance(3)
    assert (buffer.size, buffer.in_files, part.left, part.sent) == (1, 1, 1, 3)
    assert buffer.peek() is part
    buffer.advance(1)
    assert (buffer.size, buffer.in_files, part.left, part.sent) == (0, 0, 0, 4)


def test_small_writes_behind_a_file_leave_in_one_piece() -> None:
    buffer = WriteBuffer()
    buffer.append_file(region(b"FILE"))
    buffer.append(b"ab")
    buffer.append(b"cd")
    buffer.advance(4)
    assert first(buffer) == b"abcd"


@pytest.mark.parametrize("gone", range(4))
def test_skip_file_forgets_the_rest_of_a_file_and_nothing_else(gone: int) -> None:
    buffer = WriteBuffer()
    buffer.append_file(region(b"FILE"))
    buffer.append(b"ab")
    buffer.append_file(region(b"file"))
    buffer.advance(gone)
    assert buffer.skip_file() == 4 - gone
    assert (buffer.size, buffer.in_files) == (6, 4)
    assert sent(buffer) == b"abfile"


@pytest.mark.parametrize("kept", range(12))
def test_truncate_keeps_a_file_only_as_a_whole(kept: int) -> None:
    buffer = WriteBuffer()
    buffer.append(b"ab")
    buffer.append_file(region(b"FILE"))
    buffer.append(b"cd")
    buffer.append_file(region(b"LAST"))
    buffer.truncate(kept)
    whole = b"abFILEcdLAST"[:kept]
    expected = whole if kept < 3 or 6 <= kept < 9 else whole[: 2 if kept < 6 else 8]
    assert (buffer.size, buffer.in_files) == (len(expected), 4 if kept >= 6 else 0)
    buffer.append(b"!")
    assert sent(buffer) == expected + b"!"


def test_truncate_within_a_file_that_has_begun_to_leave_drops_its_rest() -> None:
    buffer = WriteBuffer()
    buffer.append_file(region(b"FILE"))
    buffer.advance(1)
    buffer.truncate(2)
    assert (buffer.size, buffer.in_files) == (0, 0)
    buffer.append(b"ab")
    assert sent(buffer) == b"ab"


def test_truncate_to_all_there_is_keeps_the_files() -> None:
    buffer = WriteBuffer()
    buffer.append(b"ab")
    buffer.append_file(region(b"FILE"))
    buffer.advance(1)
    buffer.truncate(5)
    assert sent(buffer) == b"bFILE"


PIECES = st.tuples(
    st.sampled_from([b"", b"a", b"bcdef", b"x" * BY_REFERENCE, b"x" * SMALL_WRITE]),
    st.booleans(),
    st.sampled_from([0, 1, 3]),
)


@generated(30, 300)
@given(st.lists(st.tuples(PIECES, st.booleans()), max_size=10))
def test_a_write_buffer_is_a_string_of_bytes_whatever_of_it_is_in_files(
    program: list[tuple[tuple[bytes, bool, int], bool]],
) -> None:
    buffer = WriteBuffer()
    model = b""
    in_files: list[bool] = []  # for each byte of the model
    for (data, as_file, leaves), skips in program:
        if as_file and data:
            buffer.append_file(region(data))
        else:
            buffer.append(data)
        model += data
        in_files += [as_file] * len(data)
        if buffer.size:
            piece = buffer.peek()
            gone = piece.left if skips and isinstance(piece, FileRegion) else min(leaves, len(first(buffer)))
            if isinstance(piece, memoryview):
                piece.release()
            if skips and isinstance(piece, FileRegion):
                assert buffer.skip_file() == gone
            else:
                buffer.advance(gone)
            model, in_files = model[gone:], in_files[gone:]
        assert (buffer.size, buffer.in_files) == (len(model), sum(in_files))
    assert sent(buffer) == model


@generated(30, 300)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([0, 1, 5, BY_REFERENCE, SMALL_WRITE - 1, SMALL_WRITE, SMALL_WRITE + 3]),
            st.sampled_from([bytes, bytearray, memoryview]),
            st.sampled_from([0, 1, 3, SMALL_WRITE]),
            st.sampled_from([None, 0, 2, SMALL_WRITE]),
        ),
        max_size=6,
    )
)
def test_a_write_buffer_is_a_string_of_bytes_however_it_leaves(
    program: list[tuple[int, type[bytes], int, int | None]],
) -> None:
    buffer = WriteBuffer()
    model = b""
    for number, (size, kind, leaves, truncated) in enumerate(program):
        data = bytes([97 + number]) * size
        buffer.append(kind(data))
        model += data
        if buffer.size:
            with buffer.peek() as view:
                assert bytes(view) == model[: len(view)]
                leaves = min(leaves, len(view))
            buffer.advance(leaves)
            model = model[leaves:]
        if truncated is not None:
            buffer.truncate(truncated)
            model = model[:truncated]
        assert buffer.size == len(model)
    assert sent(buffer) == model
