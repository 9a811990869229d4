"""`iostreamsrv.sansio.reads`: promises of each way to read."""

import re
from typing import Any

import pytest

from iostreamsrv.errors import OptionError, UnsatisfiableReadError
from iostreamsrv.sansio.buffers import ReadBuffer
from iostreamsrv.sansio.reads import (
    MAX_CONSECUTIVE_MATCHES,
    MORE,
    Discard,
    Read,
    ReadBytes,
    ReadFailed,
    ReadInto,
    ReadMatch,
    ReadPartial,
    ReadUntil,
    ReadUntilClose,
    ReadUntilRegex,
)


def filled(*chunks: bytes) -> ReadBuffer:
    buffer = ReadBuffer()
    for chunk in chunks:
        buffer.feed(chunk)
    return buffer


def rest(buffer: ReadBuffer) -> bytes:
    return bytes(buffer.contents())


def fed_slowly(read: Read, data: bytes) -> Any:
    """What ``read`` gives when ``data`` comes byte by byte, and what it leaves."""
    buffer = ReadBuffer()
    assert read.take(buffer) is MORE
    for number in range(len(data)):
        buffer.feed(data[number : number + 1])
        result = read.take(buffer)
        if result is not MORE:
            return result
    return MORE


# ---- what all share


def test_a_read_of_no_kind_cannot_take() -> None:
    with pytest.raises(NotImplementedError):
        Read().take(ReadBuffer())


@pytest.mark.parametrize(
    "read",
    [ReadUntil.of(b"\n", None), ReadUntilRegex.of(b"x", None), ReadBytes.of(3), ReadPartial.of(3)],
    ids=lambda read: type(read).__name__,
)
def test_a_read_without_a_result_at_the_end_leaves_the_bytes(read: Read) -> None:
    buffer = filled(b"ab")
    assert read.finish(buffer) is MORE
    read.abandon(buffer)
    assert rest(buffer) == b"ab"


def test_reads_that_wait_for_the_same_thing_are_shared() -> None:
    assert ReadUntil.of(b"\n", 10) is ReadUntil.of(b"\n", 10)
    assert ReadBytes.of(7) is ReadBytes.of(7)
    assert ReadPartial.of(7) is ReadPartial.of(7)
    assert ReadUntilRegex.of(b"x", None) is ReadUntilRegex.of(b"x", None)


# ---- until


def test_until_gives_the_bytes_and_the_delimiter() -> None:
    buffer = filled(b"one\r\ntwo")
    assert ReadUntil.of(b"\r\n", None).take(buffer) == b"one\r\n"
    assert rest(buffer) == b"two"


def test_until_resumes_after_a_split_delimiter() -> None:
    assert fed_slowly(ReadUntil.of(b"\r\n", None), b"o\rne\r\n") == b"o\rne\r\n"


def test_until_gives_what_ends_at_its_limit() -> None:
    assert ReadUntil.of(b"\n", 4).take(filled(b"one\n")) == b"one\n"


@pytest.mark.parametrize("content", [b"one\n", b"onex"])
def test_until_is_unsatisfiable_beyond_its_limit(content: bytes) -> None:
    buffer = filled(content)
    with pytest.raises(UnsatisfiableReadError, match=r"b'\\n' not found within 3 bytes"):
        ReadUntil.of(b"\n", 3).take(buffer)
    assert rest(buffer) == content


@pytest.mark.parametrize("delimiter", [b"", "\n", 10, None])
def test_until_demands_a_delimiter_of_bytes(delimiter: Any) -> None:
    with pytest.raises(OptionError, match=f"delimiter={delimiter!r}".replace("\\", r"\\")):
        ReadUntil.of(delimiter, None)


@pytest.mark.parametrize("limit", [0, -1, 1.5, "9", False])
@pytest.mark.parametrize("of", [ReadUntil.of, ReadUntilRegex.of])
def test_a_limit_is_a_positive_integer(of: Any, limit: Any) -> None:
    with pytest.raises(OptionError, match=f"max_bytes={limit!r}"):
        of(b"\n", limit)


@pytest.mark.parametrize("like_one", [True, 1.0])
@pytest.mark.parametrize(
    "of",
    [
        pytest.param(lambda number: ReadBytes.of(number), id="bytes"),
        pytest.param(lambda number: ReadPartial.of(number), id="partial"),
        pytest.param(lambda number: ReadUntil.of(b"\n", number), id="until"),
        pytest.param(lambda number: ReadUntilRegex.of(b"\n", number), id="regex"),
    ],
)
def test_what_is_merely_equal_to_a_number_that_was_good_is_still_wrong(of: Any, like_one: Any) -> None:
    of(1)
    with pytest.raises(OptionError):
        of(like_one)


# ---- regex


def test_regex_gives_everything_up_to_the_end_of_the_match() -> None:
    buffer = filled(b"abc12;def")
    assert ReadUntilRegex.of(rb"\d+;", None).take(buffer) == b"abc12;"
    assert rest(buffer) == b"def"


def test_regex_matches_what_came_in_pieces() -> None:
    assert fed_slowly(ReadUntilRegex.of(rb"\d+;", None), b"abc12;def") == b"abc12;"


def test_regex_takes_a_compiled_pattern() -> None:
    assert ReadUntilRegex.of(re.compile(rb"X", re.IGNORECASE), None).take(filled(b"ax")) == b"ax"


def test_regex_waits_while_its_limit_is_not_passed() -> None:
    buffer = filled(b"abcd")
    assert ReadUntilRegex.of(rb"\d", 4).take(buffer) is MORE
    buffer.feed(b"5")
    with pytest.raises(UnsatisfiableReadError, match="not found within 4 bytes"):
        ReadUntilRegex.of(rb"\d", 4).take(buffer)
    assert rest(buffer) == b"abcd5"


def test_regex_does_not_look_beyond_its_limit() -> None:
    assert ReadUntilRegex.of(rb"\d", 4).take(filled(b"abc4")) == b"abc4"
    with pytest.raises(UnsatisfiableReadError):
        ReadUntilRegex.of(rb"\d", 3).take(filled(b"abc4"))


def test_regex_demands_a_pattern_of_bytes() -> None:
    with pytest.raises(OptionError, match="regex="):
        ReadUntilRegex.of("x", None)  # type: ignore[arg-type]


# ---- bytes, partial


def test_exactly_so_many_bytes() -> None:
    buffer = filled(b"ab", b"cd")
    assert ReadBytes.of(3).take(buffer) == b"abc"
    assert rest(buffer) == b"d"
    assert fed_slowly(ReadBytes.of(3), b"abcd") == b"abc"


def test_partial_gives_what_there_is_up_to_so_many() -> None:
    buffer = filled(b"abcd")
    assert ReadPartial.of(3).take(buffer) == b"abc"
    assert ReadPartial.of(3).take(buffer) == b"d"
    assert ReadPartial.of(3).take(buffer) is MORE


@pytest.mark.parametrize("of", [ReadBytes.of, ReadPartial.of])
def test_no_bytes_are_there_at_once(of: Any) -> None:
    buffer = filled(b"ab")
    assert of(0).take(buffer) == b""
    assert rest(buffer) == b"ab"


@pytest.mark.parametrize("count", [-1, 1.5, "9", None, False])
@pytest.mark.parametrize("of", [ReadBytes.of, ReadPartial.of])
def test_a_count_is_an_integer_not_below_zero(of: Any, count: Any) -> None:
    with pytest.raises(OptionError, match=f"num_bytes={count!r}"):
        of(count)


# ---- into


def test_into_shows_the_bytes_as_they_come() -> None:
    target = bytearray(4)
    read = ReadInto(target, partial=False)
    assert read.take(filled(b"ab")) is MORE
    assert target == b"ab\0\0"
    buffer = filled(b"cdef")
    assert read.take(buffer) == 4
    assert target == b"abcd"
    assert rest(buffer) == b"ef"


def test_into_takes_nothing_from_an_empty_buffer() -> None:
    assert ReadInto(bytearray(2), partial=False).take(ReadBuffer()) is MORE
    assert ReadInto(bytearray(2), partial=True).take(ReadBuffer()) is MORE


def test_into_partially_is_content_with_one_byte() -> None:
    target = bytearray(4)
    assert ReadInto(target, partial=True).take(filled(b"a")) == 1
    assert target == b"a\0\0\0"


def test_into_keeps_no_view_of_the_target() -> None:
    target = bytearray(4)
    read = ReadInto(target, partial=False)
    read.take(filled(b"ab"))
    target += b"!"  # a bytearray with a view on it cannot be resized
    assert target == b"ab\0\0!"


def test_into_fills_the_part_a_view_shows_whatever_its_items_are() -> None:
    target = bytearray(b"........")
    assert ReadInto(memoryview(target)[2:6].cast("H"), partial=False).take(filled(b"abcd")) == 4
    assert target == b"..abcd.."


def test_into_gives_back_what_it_had_when_abandoned() -> None:
    read = ReadInto(bytearray(4), partial=False)
    buffer = filled(b"ab")
    assert read.take(buffer) is MORE
    buffer.feed(b"c")
    read.abandon(buffer)
    assert rest(buffer) == b"abc"


def test_into_gives_up_what_it_had_when_the_caller_released_the_view() -> None:
    view = memoryview(bytearray(4))
    read = ReadInto(view, partial=False)
    buffer = filled(b"ab")
    assert read.take(buffer) is MORE
    buffer.feed(b"c")
    view.release()
    read.abandon(buffer)
    assert rest(buffer) == b"c"


def test_into_fails_alone_when_its_target_was_cut() -> None:
    buffer, target = filled(b"abcde"), bytearray(10)
    read = ReadInto(target, partial=False)
    assert read.take(buffer) is MORE
    del target[2:]
    with pytest.raises(ReadFailed) as failed:
        read.take(filled(b"x"))
    assert isinstance(failed.value.error, BufferError)
    read.abandon(buffer)
    assert rest(buffer) == b"ab"


@pytest.mark.parametrize("target", [b"abcd", memoryview(b"abcd"), memoryview(bytearray(4))[::2]])
def test_into_demands_a_writable_contiguous_buffer(target: Any) -> None:
    with pytest.raises(OptionError, match="buf="):
        ReadInto(target, partial=False)


# ---- until close


def test_until_close_has_a_result_only_at_the_end() -> None:
    buffer = filled(b"ab", b"cd")
    read = ReadUntilClose()
    assert read.take(buffer) is MORE
    assert read.finish(buffer) == b"abcd"
    assert read.finish(buffer) == b""


# ---- match


def length_prefixed(buffer: bytearray) -> tuple[int, bytes] | None:
    if len(buffer) <= buffer[0]:
        return None
    return 1 + buffer[0], bytes(buffer[1 : 1 + buffer[0]])


def test_match_gives_what_the_function_makes_of_the_bytes() -> None:
    buffer = filled(b"\x02abrest")
    assert ReadMatch(length_prefixed).take(buffer) == b"ab"
    assert rest(buffer) == b"rest"
    assert fed_slowly(ReadMatch(length_prefixed), b"\x03abcd") == b"abc"


def test_match_may_consume_nothing() -> None:
    buffer = filled(b"abc")
    assert ReadMatch(lambda seen: (0, seen[0])).take(buffer) == ord("a")
    assert rest(buffer) == b"abc"


def test_match_may_have_none_for_a_result() -> None:
    buffer = filled(b"abc")
    assert ReadMatch(lambda seen: (len(seen), None)).take(buffer) is None
    assert buffer.size == 0


def test_match_may_consume_and_go_on() -> None:
    buffer = filled(b"abc")
    read = ReadMatch(lambda seen: (2, MORE) if len(seen) > 1 else None)
    assert read.take(buffer) is MORE
    assert read.restarted
    assert rest(buffer) == b"c"
    read.restarted = False
    assert read.take(filled(b"c")) is MORE
    assert not read.restarted


def test_match_is_asked_again_for_what_is_left() -> None:
    seen: list[bytes] = []

    def one(buffer: bytearray) -> tuple[int, Any] | None:
        seen.append(bytes(buffer))
        return (1, "end" if buffer[:1] == b"c" else MORE)

    buffer = filled(b"abcd")
    read = ReadMatch(one)
    assert read.take(buffer) == "end"
    assert seen == [b"abcd", b"bcd", b"cd"]
    assert rest(buffer) == b"d"
    assert not read.unfinished


def test_match_is_asked_but_so_often_in_a_row() -> None:
    buffer = filled(bytes(MAX_CONSECUTIVE_MATCHES + 1))
    read = ReadMatch(lambda _: (1, MORE))
    assert read.take(buffer) is MORE
    assert read.unfinished
    assert buffer.size == 1
    assert read.take(buffer) is MORE
    assert not read.unfinished
    assert buffer.size == 0


def test_match_is_not_asked_again_where_it_consumes_nothing() -> None:
    calls: list[bytes] = []

    def nothing(buffer: bytearray) -> tuple[int, Any]:
        calls.append(bytes(buffer))
        return 0, MORE

    read = ReadMatch(nothing)
    assert read.take(filled(b"ab")) is MORE
    assert calls == [b"ab"]
    assert not read.restarted
    assert not read.unfinished


@pytest.mark.parametrize("kind", [StopIteration, GeneratorExit, BaseException])
def test_match_fails_with_whatever_the_function_raises(kind: type[BaseException]) -> None:
    def fail(_: bytearray) -> None:
        raise kind

    buffer = filled(b"abc")
    with pytest.raises(ReadFailed) as failed:
        ReadMatch(fail).take(buffer)
    assert isinstance(failed.value.error, kind)
    assert rest(buffer) == b"abc"


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_match_lets_through_what_ends_the_program(kind: type[BaseException]) -> None:
    def fail(_: bytearray) -> None:
        raise kind

    with pytest.raises(kind):
        ReadMatch(fail).take(filled(b"abc"))


@pytest.mark.parametrize("consumed", [-1, 4, 1.0, "1", True])
def test_match_must_consume_what_there_is(consumed: Any) -> None:
    buffer = filled(b"abc")
    with pytest.raises(ReadFailed, match="must be 0 to 3, the number of") as failed:
        ReadMatch(lambda _: (consumed, None)).take(buffer)
    assert isinstance(failed.value.error, OptionError)
    assert rest(buffer) == b"abc"


@pytest.mark.parametrize("found", [5, (1,), b"ab", [1, None]])
def test_match_must_return_a_pair_or_nothing(found: Any) -> None:
    buffer = filled(b"abc")
    with pytest.raises(ReadFailed, match=r"must return None or \(consumed, result\), not") as failed:
        ReadMatch(lambda _: found).take(buffer)
    assert isinstance(failed.value.error, OptionError)
    assert rest(buffer) == b"abc"


def test_match_leaves_the_bytes_when_the_function_raises() -> None:
    buffer = filled(b"abc")
    with pytest.raises(ReadFailed) as failed:
        ReadMatch(lambda _: (0, 1 // 0)).take(buffer)
    assert isinstance(failed.value.error, ZeroDivisionError)
    assert rest(buffer) == b"abc"


def test_match_demands_a_function() -> None:
    with pytest.raises(OptionError, match="match=b'x'"):
        ReadMatch(b"x")  # type: ignore[arg-type]


# ---- what comes in one packet


def test_until_accepts_a_chunk_that_is_one_line() -> None:
    read = ReadUntil.of(b"\r\n", None)
    line = b"one line\r\n"
    assert read.accept(line) is line


@pytest.mark.parametrize("chunk", [b"no end", b"a\r\nb\r\n", b"a\r\nb", b"\n", b"\r"])
def test_until_accepts_nothing_else(chunk: bytes) -> None:
    assert ReadUntil.of(b"\r\n", None).accept(chunk) is MORE


def test_until_accepts_no_line_beyond_its_limit() -> None:
    assert ReadUntil.of(b"\n", 4).accept(b"abc\n") == b"abc\n"
    assert ReadUntil.of(b"\n", 3).accept(b"abc\n") is MORE


def test_partial_accepts_a_chunk_that_is_not_too_much() -> None:
    assert ReadPartial.of(3).accept(b"abc") == b"abc"
    assert ReadPartial.of(2).accept(b"abc") is MORE


def test_other_reads_accept_no_chunk() -> None:
    assert ReadBytes.of(3).accept(b"abc") is MORE


# ---- discard


def test_discard_keeps_what_was_there_and_drops_what_comes() -> None:
    buffer = filled(b"old")
    read = Discard(buffer, 5)
    buffer.feed(b"new")
    assert read.take(buffer) is MORE
    assert rest(buffer) == b"old"
    assert read.finish(buffer) is None


def test_discard_is_done_when_its_limit_has_come() -> None:
    buffer = ReadBuffer()
    read = Discard(buffer, 5)
    buffer.feed(b"abc")
    assert read.take(buffer) is MORE
    buffer.feed(b"de")
    assert read.take(buffer) is None
    assert buffer.size == 0
