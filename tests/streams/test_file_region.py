"""`iostreamsrv.streams.file_region`: which part of a file is meant, and that no descriptor is left of it."""

import contextlib
import io
import mmap
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from iostreamsrv import OptionError
from iostreamsrv.streams.file_region import FileRegion
from tests.support.leaks import open_descriptors

TEN = b"0123456789"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "ten"
    path.write_bytes(TEN)
    return path


@pytest.fixture(params=["descriptor", "memory"])
def file(request: pytest.FixtureRequest, path: Path) -> Iterator[IO[bytes]]:
    """Ten bytes, in a file with a descriptor and in one without."""
    with path.open("rb") if request.param == "descriptor" else io.BytesIO(TEN) as file:
        yield file


def all_of(region: FileRegion, at_once: int = 4) -> bytes:
    content = b""
    while region.left and (chunk := region.read(at_once)):
        region.advance(len(chunk))
        content += chunk
    return content


# ---- which part


@pytest.mark.parametrize(
    "offset, count, expected",
    [
        (0, None, TEN),
        (3, None, TEN[3:]),
        (3, 4, TEN[3:7]),
        (0, 0, b""),
        (8, 5, TEN[8:]),
        (10, None, b""),
        (11, 5, b""),
        (1 << 70, 1 << 70, b""),
    ],
)
def test_a_region_is_what_the_file_has_of_the_part_one_asks_for(
    file: IO[bytes], offset: int, count: int | None, expected: bytes
) -> None:
    region = FileRegion(file, offset, count)
    assert region.left == len(expected)
    assert all_of(region) == expected
    assert (region.left, region.sent) == (0, len(expected))


def test_read_gives_the_same_again_until_it_has_left(file: IO[bytes]) -> None:
    region = FileRegion(file, 2)
    assert region.read(3) == region.read(3) == b"234"
    region.advance(2)
    assert region.read(3) == b"456"
    assert (region.offset, region.left, region.sent) == (4, 6, 2)


def test_the_position_of_a_file_is_neither_used_nor_moved(file: IO[bytes]) -> None:
    file.seek(7)
    region = FileRegion(file, 2)
    assert file.tell() == 7
    assert all_of(region) == TEN[2:]
    assert file.tell() == 7


def test_the_position_is_as_it_was_also_when_a_read_fails() -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise OSError("broken")

    file = Broken(TEN)
    file.seek(3)
    with pytest.raises(OSError, match="broken"):
        FileRegion(file).read(4)
    assert file.tell() == 3


def test_what_is_added_to_the_file_later_is_not_of_the_region(path: Path) -> None:
    with path.open("r+b", buffering=0) as file:
        region = FileRegion(file, 4)
        file.seek(0, io.SEEK_END)
        file.write(b"more")
    assert all_of(region) == TEN[4:]


def test_a_file_that_has_become_shorter_ends_where_it_ends(path: Path) -> None:
    with path.open("r+b") as file:
        region = FileRegion(file)
        file.truncate(3)
    assert all_of(region) == TEN[:3]
    assert (region.left, region.sent) == (7, 3)


def test_several_regions_of_one_file_do_not_disturb_each_other(file: IO[bytes]) -> None:
    front, back = FileRegion(file, 0, 5), FileRegion(file, 5)
    assert front.read(2) == b"01"
    assert back.read(2) == b"56"
    front.advance(2)
    assert (front.read(9), back.read(9)) == (b"234", b"56789")


def test_a_file_whose_seek_tells_nothing_is_measured_all_the_same() -> None:
    class Silent:
        """As `mmap` objects are before Python 3.13."""

        def __init__(self) -> None:
            self._file = io.BytesIO(TEN)
            self.read, self.tell = self._file.read, self._file.tell

        def seek(self, offset: int, whence: int = io.SEEK_SET) -> None:
            self._file.seek(offset, whence)

    assert all_of(FileRegion(Silent(), 6)) == TEN[6:]
    with mmap.mmap(-1, 10) as memory:
        memory[:] = TEN
        region = FileRegion(memory, 2, 5)
        assert all_of(region) == TEN[2:7]


# ---- descriptors


def test_a_file_with_a_descriptor_may_be_closed_and_deleted_at_once(path: Path) -> None:
    with path.open("rb") as file:
        region = FileRegion(file, 1)
    path.unlink()
    assert all_of(region) == TEN[1:]


def test_the_descriptor_of_a_region_goes_with_it(path: Path) -> None:
    with path.open("rb") as file:
        before = open_descriptors()
        region = FileRegion(file)
        assert open_descriptors() - before == {region.fd}
        assert region.fd != file.fileno()
        del region
        assert open_descriptors() == before


def test_a_file_without_a_descriptor_takes_none() -> None:
    before = open_descriptors()
    region = FileRegion(io.BytesIO(TEN))
    assert region.fd == -1
    assert open_descriptors() == before


# ---- what cannot be


class Bare(io.RawIOBase):
    """A descriptor in the dress of a file, for what `open` refuses; -1 for none."""

    def __init__(self, number: int = -1) -> None:
        self._number = number

    def fileno(self) -> int:
        return super().fileno() if self._number < 0 else self._number

    def close(self) -> None:
        if self._number >= 0:
            os.close(self._number)
        self._number = -1


def fifo(path: Path) -> Bare:
    name = path.with_name("fifo")
    os.mkfifo(name)
    return Bare(os.open(name, os.O_RDONLY | os.O_NONBLOCK))


def closed(file: Any) -> Any:
    file.close()
    return file


NO_FILES = {
    "text": lambda path: path.open("r"),
    "text in memory": lambda path: io.StringIO("text"),
    "write-only": lambda path: path.open("ab"),
    "closed": lambda path: closed(path.open("rb")),
    "closed, in memory": lambda path: closed(io.BytesIO(TEN)),
    "a directory": lambda path: Bare(os.open(path.parent, os.O_RDONLY)),
    "a FIFO": fifo,
    "a device": lambda path: Bare(os.open(os.devnull, os.O_RDONLY)),
    "a socket": lambda path: socket.socket(),
    "without seek": lambda path: Bare(),
}


@pytest.fixture(params=NO_FILES.values(), ids=list(NO_FILES))
def no_file(request: pytest.FixtureRequest, path: Path) -> Iterator[Any]:
    """Something with the methods of a file that cannot be sent."""
    with contextlib.closing(request.param(path)) as file:
        yield file


def test_what_cannot_be_sent_is_refused(no_file: Any) -> None:
    with pytest.raises(OptionError, match=r"^file=<.*: .+") as caught:
        FileRegion(no_file)
    assert caught.value.value is no_file


def test_the_error_of_a_refused_file_keeps_no_descriptor(no_file: Any) -> None:
    before = open_descriptors()
    with pytest.raises(OptionError) as caught:
        FileRegion(no_file)
    assert open_descriptors() == before
    assert caught.value.option == "file"


@pytest.mark.parametrize(
    "file", [None, 3, "path", b"bytes", Path("path"), [1], object()], ids=lambda file: type(file).__name__
)
def test_what_is_no_file_is_refused(file: Any) -> None:
    with pytest.raises(OptionError, match=r"^file=.*: must be a binary file"):
        FileRegion(file)


@pytest.mark.parametrize("value", [-1, True, False, 1.0, "1", b"1", [1]])
@pytest.mark.parametrize("name", ["offset", "count"])
def test_a_number_that_cannot_be_is_named_with_its_value(file: IO[bytes], name: str, value: Any) -> None:
    before = open_descriptors()
    with pytest.raises(OptionError, match="^" + re.escape(f"{name}={value!r}: must be a number of bytes")):
        FileRegion(file, **{name: value})
    assert open_descriptors() == before


def test_an_offset_of_none_is_refused(file: IO[bytes]) -> None:
    with pytest.raises(OptionError, match=r"^offset=None: "):
        FileRegion(file, None)  # type: ignore[arg-type]
