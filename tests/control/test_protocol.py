"""The language of the control socket, without a socket."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iostreamsrv.control.protocol import (
    FAILED,
    INVALID,
    LONGEST_LINE,
    REFUSED,
    ControlError,
    InvalidRequestError,
    Request,
    Requests,
    answer_line,
    parsed,
    result_of,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


def taken(requests: Requests) -> list[Request | str]:
    """All that is to be had of them now; of what is invalid the message."""
    found: list[Request | str] = []
    while True:
        try:
            request = requests.take()
        except InvalidRequestError as error:
            found.append(error.message)
            continue
        if request is None:
            return found
        found.append(request)


@given(st.text(), st.dictionaries(st.text(), JSON), st.none() | st.integers() | st.text())
def test_a_request_comes_as_it_was_sent(verb: str, arguments: dict[str, Any], number: int | str | None) -> None:
    request = Request(verb, arguments, number)
    line = request.to_line()
    assert line.count(b"\n") == 1
    assert parsed(line) == request


@given(JSON, st.none() | st.integers() | st.text())
def test_a_result_comes_as_it_was_sent(result: Any, number: int | str | None) -> None:
    line = answer_line(number, result)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert result_of(line) == result
    assert json.loads(line).get("id") == number


def test_an_error_comes_as_it_was_sent() -> None:
    with pytest.raises(ControlError, match=r"^no room$") as caught:
        result_of(answer_line(5, ControlError(REFUSED, "no room")))
    assert (caught.value.code, caught.value.message) == (REFUSED, "no room")


@given(st.lists(st.text(max_size=20), max_size=5), st.data())
def test_however_the_bytes_are_split_the_same_requests_come(verbs: list[str], data: st.DataObject) -> None:
    sent = b"".join(Request(verb).to_line() for verb in verbs)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(sent)), max_size=6)))
    requests, found = Requests(), []
    for start, end in zip([0, *cuts], [*cuts, len(sent)], strict=True):
        requests.feed(sent[start:end])
        found += taken(requests)
    assert found == [Request(verb) for verb in verbs]
    assert requests.is_waiting


def test_half_a_line_is_no_request_yet() -> None:
    requests = Requests()
    requests.feed(b'{"verb": "x"')
    assert requests.is_waiting
    assert requests.take() is None
    requests.feed(b"}\n")
    assert not requests.is_waiting
    assert requests.take() == Request("x")


def test_empty_lines_are_skipped() -> None:
    requests = Requests()
    requests.feed(b'\n  \r\n{"verb": "x"}\r\n\n')
    assert taken(requests) == [Request("x")]


def test_a_line_that_is_too_long_is_one_error_and_what_follows_is_a_request() -> None:
    requests = Requests()
    found = []
    for _ in range(160):  # 10 MiB
        requests.feed(b"x" * LONGEST_LINE)
        found += taken(requests)
        assert requests.is_waiting
    requests.feed(b'x\n{"verb": "x"}\n')
    assert found + taken(requests) == [f"the line is longer than {LONGEST_LINE} bytes", Request("x")]


@pytest.mark.parametrize("more", [0, 1])
def test_the_longest_line_has_64_kib_with_its_end(more: int) -> None:
    line = b'{"verb": "x"}'.ljust(LONGEST_LINE - 1 + more) + b"\n"
    requests = Requests()
    requests.feed(line + b'{"verb": "y"}\n')
    first, second = taken(requests)
    assert (first == Request("x")) is (more == 0)
    assert second == Request("y")


@pytest.mark.parametrize(
    "line, message",
    [
        (b"garbage", "no JSON"),
        (b"\xff\x00", "no JSON"),
        (b"[" * 60_000, "no JSON"),
        (b"[]", "a JSON object"),
        (b"{}", "a verb"),
        (b'{"verb": 1}', "a verb"),
        (b'{"verb": "x", "arguments": []}', "arguments"),
        (b'{"verb": "x", "id": []}', "id must be"),
        (b'{"verb": "x", "id": true}', "id must be"),
        (b'{"verb": "x", "version": 2}', "speaks version 1"),
    ],
)
def test_what_is_no_request_gets_an_error_that_says_why(line: bytes, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message) as caught:
        parsed(line)
    assert caught.value.code == INVALID


def test_the_error_has_the_id_of_the_request() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parsed(b'{"id": 5}')
    assert caught.value.id == 5


@given(st.binary())
def test_any_line_is_a_request_or_invalid(line: bytes) -> None:
    try:
        assert isinstance(parsed(line), Request)
    except InvalidRequestError as error:
        assert error.message


@pytest.mark.parametrize("line", [b"x\n", b"5\n", b"{}\n", b'{"version": 1}\n', b'{"version": 1, "error": {}}\n'])
def test_what_is_no_answer_is_an_error(line: bytes) -> None:
    with pytest.raises(ControlError, match="no answer"):
        result_of(line)


def test_an_answer_of_another_version_is_an_error() -> None:
    with pytest.raises(ControlError, match="version 2"):
        result_of(b'{"version": 2, "result": 5}\n')


def test_what_failed_is_told_from_what_was_refused() -> None:
    with pytest.raises(ControlError) as caught:
        result_of(answer_line(None, ControlError(FAILED, "no")))
    assert caught.value.code == FAILED
