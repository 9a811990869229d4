"""Listening sockets and the addresses behind a name."""

import asyncio
import contextlib
import errno
import re
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from iostreamsrv import IOLoop, IOStream, OptionError, TCPServer
from iostreamsrv.errors import ResolveError
from iostreamsrv.netutil import (
    Endpoint,
    add_accept_handler,
    bind_sockets,
    bind_unix_socket,
    resolve,
    socket_from_fd,
)
from tests.support.listening import (
    has_ipv6,
    linux_only,
    on_loops,
    output,
    refused,
    unprivileged,
    unused_port,
    with_ipv6,
)
from tests.support.peers import Peer
from tests.support.waiting import PATIENCE, eventually, turns


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "socket"


# ---- bind_sockets


@contextlib.contextmanager
def closing(sockets: list[socket.socket]) -> Iterator[list[Any]]:
    """Their names; they are closed in the end."""
    yield [sock.getsockname() for sock in sockets]
    for sock in sockets:
        sock.close()


@pytest.mark.parametrize("address", [None, "", "*"])
def test_all_interfaces_have_three_names(address: str | None) -> None:
    sockets = bind_sockets(0, address)
    assert not any(sock.getblocking() for sock in sockets)
    with closing(sockets) as names:
        assert [name[0] for name in names] == (["0.0.0.0", "::"] if has_ipv6() else ["0.0.0.0"])
        assert len({name[1] for name in names}) == 1
        assert names[0][1] > 0


@with_ipv6
def test_a_family_alone_leaves_the_port_of_the_other_free() -> None:
    port = unused_port()
    with closing(bind_sockets(port, "*", socket.AF_INET6)):
        socket.create_server(("0.0.0.0", port)).close()


def port_80_is_reserved() -> bool:
    try:
        return int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()) > 80
    except FileNotFoundError:
        return True


@pytest.mark.skipif(not port_80_is_reserved(), reason="here everybody may bind every port")
@pytest.mark.parametrize("port", [80, "80", "http"])
def test_a_port_without_permission_is_named(port: int | str) -> None:
    with refused("127.0.0.1:80: Permission denied", errno.EACCES), unprivileged():
        bind_sockets(port, "127.0.0.1")


@pytest.mark.parametrize("reuse_port", [False, True])
def test_a_busy_port_is_named(reuse_port: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with refused(f"127.0.0.1:{port}: Address already in use", errno.EADDRINUSE):
            bind_sockets(port, "127.0.0.1", reuse_port=reuse_port)


@with_ipv6
@pytest.mark.parametrize("taken_address", ["::1", "::"])
def test_a_dual_stack_bind_that_fails_halfway_frees_the_first_half(taken_address: str) -> None:
    port = unused_port()
    with socket.create_server((taken_address, port), family=socket.AF_INET6):
        with refused(f"[::]:{port}: Address already in use", errno.EADDRINUSE):
            bind_sockets(port)
        socket.create_server(("0.0.0.0", port)).close()


@with_ipv6
def test_an_address_of_another_host_is_named() -> None:
    with refused("192.0.2.77:0: Cannot assign requested address", errno.EADDRNOTAVAIL):
        bind_sockets(0, "192.0.2.77")
    with refused("[2001:db8::77]:8888: Cannot assign requested address", errno.EADDRNOTAVAIL):
        bind_sockets(8888, "2001:db8::77")


@linux_only
@with_ipv6
def test_an_interface_that_is_missing_gone_or_not_said_is_named() -> None:
    with refused("[fe80::1%nosuch0]:0: there is no network interface nosuch0"):
        bind_sockets(0, "fe80::1%nosuch0")
    with refused("[fe80::1%999999]:0: No such device", errno.ENODEV):
        bind_sockets(0, "fe80::1%999999")
    with refused("[fe80::1]:0: a link-local address needs its interface", errno.EINVAL):
        bind_sockets(0, "fe80::1")


def test_a_name_that_does_not_resolve_is_named() -> None:
    with refused("256.0.0.1:80: "):
        bind_sockets(80, "256.0.0.1")
    with refused("127.0.0.1:no-such-service: "):
        bind_sockets("no-such-service", "127.0.0.1")
    with refused("[::g]:80: "):
        bind_sockets(80, "::g")


@pytest.mark.parametrize("address", ["127.0.0.1\0.example.org", "\0"])
def test_a_zero_byte_does_not_end_a_host(address: str) -> None:
    with pytest.raises(OptionError, match=r"^address="):
        bind_sockets(0, address)


def test_a_number_of_a_thousand_digits_is_no_port() -> None:
    with pytest.raises(OptionError, match=r"^port="):
        bind_sockets("1" * 10_000, "127.0.0.1")


FEW_PORTS = """
    import json, socket
    from pathlib import Path
    from iostreamsrv import ListenError
    from iostreamsrv.netutil import bind_sockets

    ports = range(40000, 40008)
    Path("/proc/sys/net/ipv4/ip_local_port_range").write_text(f"{ports[0]} {ports[-1]}")

    def occupy(port):
        return socket.create_server(("::", port), family=socket.AF_INET6)

    def bound():
        sockets = bind_sockets(0)
        names = [sock.getsockname()[1] for sock in sockets]
        for sock in sockets:
            sock.close()
        return names

    first = bound()[0]
    others = [occupy(first)]
    print(first)
    print([bound() for _ in range(20)])
    others += [occupy(port) for port in ports if port != first]
    try:
        bind_sockets(0)
    except ListenError as error:
        print(json.dumps(str(error)))
    for port in ports:
        socket.create_server(("0.0.0.0", port)).close()
"""

OWN_NETWORK = ["unshare", "--user", "--map-root-user", "--net"]


def can_have_a_network_of_its_own() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*OWN_NETWORK, "true"], capture_output=True, timeout=PATIENCE).returncode == 0


@with_ipv6
@pytest.mark.skipif(not can_have_a_network_of_its_own(), reason="no network of one's own here: `unshare` fails")
def test_a_port_the_kernel_chose_is_chosen_anew_while_another_address_has_it_in_use() -> None:
    taken, bound, complaint = output(FEW_PORTS, *OWN_NETWORK)
    for ports in bound:
        assert len(ports) == 2
        assert len(set(ports)) == 1
        assert taken not in ports
    assert re.fullmatch(r"cannot listen on \[::\]:4000\d: Address already in use", complaint)


# ---- add_accept_handler


Accepted = list[tuple[socket.socket, Any]]


@pytest.fixture
def listener(io_loop: IOLoop) -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


@on_loops
@pytest.mark.gen_test
async def test_an_accept_handler_gets_connections_and_their_addresses(listener: socket.socket) -> None:
    accepted: Accepted = []
    remove = add_accept_handler(listener, lambda *arguments: accepted.append(arguments))
    clients = [socket.create_connection(listener.getsockname()) for _ in range(3)]
    await eventually(lambda: len(accepted) == 3)
    assert [address for _, address in accepted] == [client.getsockname() for client in clients]
    remove()
    for sock in [*clients, *(connection for connection, _ in accepted)]:
        sock.close()


@on_loops
@pytest.mark.gen_test
async def test_a_removed_accept_handler_accepts_no_more_and_leaves_the_socket(listener: socket.socket) -> None:
    accepted: Accepted = []
    remove = add_accept_handler(listener, lambda *arguments: accepted.append(arguments))
    remove()
    remove()
    with socket.create_connection(listener.getsockname()):
        await turns()
        assert accepted == []
        listener.accept()[0].close()


@on_loops
@pytest.mark.gen_test
async def test_an_accept_handler_may_remove_itself_while_more_clients_wait(listener: socket.socket) -> None:
    accepted: Accepted = []

    def once(*arguments: Any) -> None:
        accepted.append(arguments)
        remove()

    clients = [socket.create_connection(listener.getsockname()) for _ in range(2)]
    remove = add_accept_handler(listener, once)
    await eventually(lambda: accepted)
    await turns()
    assert len(accepted) == 1
    for sock in [*clients, accepted[0][0]]:
        sock.close()


@on_loops
@pytest.mark.gen_test
async def test_an_accept_handler_may_be_added_again_on_the_same_socket(listener: socket.socket) -> None:
    for _ in range(2):
        accepted: Accepted = []
        remove = add_accept_handler(listener, lambda *arguments: accepted.append(arguments))  # noqa: B023
        with socket.create_connection(listener.getsockname()):
            await eventually(lambda: accepted)  # noqa: B023
        remove()
        accepted[0][0].close()


@on_loops
@pytest.mark.gen_test
async def test_an_exception_in_an_accept_handler_is_the_loops_and_the_next_client_is_accepted(
    listener: socket.socket,
) -> None:
    accepted: Accepted = []
    errors: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))

    def fail_first(connection: socket.socket, address: Any) -> None:
        accepted.append((connection, address))
        connection.close()
        if len(accepted) == 1:
            raise ZeroDivisionError("made up")

    remove = add_accept_handler(listener, fail_first)
    clients = [socket.create_connection(listener.getsockname()) for _ in range(2)]
    await eventually(lambda: len(accepted) == 2)
    remove()
    for client in clients:
        client.close()
    (error,) = errors
    assert isinstance(error["exception"], ZeroDivisionError)


@on_loops
@pytest.mark.gen_test
async def test_an_accept_handler_rests_while_there_are_no_descriptors(
    listener: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    accepted: Accepted = []
    remove = add_accept_handler(listener, lambda *arguments: accepted.append(arguments))
    client = socket.create_connection(listener.getsockname())
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        await eventually(lambda: "accepting is paused" in caplog.text)
        await turns(100)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(caplog.records) == 1
    await eventually(lambda: accepted)
    remove()
    client.close()
    accepted[0][0].close()


@pytest.mark.parametrize("wrong", ["number", "closed", "deaf", "datagrams"])
def test_what_cannot_be_accepted_on_is_named(wrong: str) -> None:
    with socket.socket(type=socket.SOCK_DGRAM if wrong == "datagrams" else socket.SOCK_STREAM) as sock:
        if wrong == "closed":
            sock.close()
        with pytest.raises(OptionError, match=r"^sock="):
            add_accept_handler(sock.fileno() if wrong == "number" else sock, print)  # type: ignore[arg-type]


# ---- resolve


@on_loops
@pytest.mark.gen_test
async def test_an_address_resolves_to_itself(io_loop: IOLoop) -> None:
    assert await resolve("127.0.0.1", 80) == [Endpoint(socket.AF_INET, ("127.0.0.1", 80))]
    assert await resolve("::1", "80") == [Endpoint(socket.AF_INET6, ("::1", 80, 0, 0))]


@on_loops
@pytest.mark.gen_test
async def test_a_name_resolves_to_what_can_be_connected_to(listener: socket.socket) -> None:
    for endpoint in await resolve("localhost", listener.getsockname()[1], socket.AF_INET):
        family, address = endpoint
        with socket.socket(family) as client:
            client.connect(address)
        assert str(endpoint) == f"{endpoint.host}:{endpoint.port}" == "127.0.0.1:{}".format(*address[1:])


@on_loops
@pytest.mark.gen_test
async def test_a_service_resolves_to_its_port(io_loop: IOLoop) -> None:
    (endpoint,) = await resolve("::1", "http")
    assert (endpoint.host, endpoint.port, str(endpoint)) == ("::1", 80, "[::1]:80")


@pytest.mark.parametrize("host", [None, "", "*"])
@on_loops
@pytest.mark.gen_test
async def test_no_host_resolves_to_all_interfaces(io_loop: IOLoop, host: str | None) -> None:
    endpoints = await resolve(host, 80)
    assert {str(endpoint) for endpoint in endpoints} == {"0.0.0.0:80", "[::]:80"}
    assert [str(endpoint) for endpoint in await resolve(host, 80, socket.AF_INET6)] == ["[::]:80"]


@linux_only
@on_loops
@pytest.mark.gen_test
async def test_an_interface_stays_with_its_address(io_loop: IOLoop) -> None:
    number, name = socket.if_nameindex()[0]
    for scope in (name, str(number)):
        (endpoint,) = await resolve(f"fe80::1%{scope}", 80)
        assert endpoint == Endpoint(socket.AF_INET6, ("fe80::1", 80, 0, number))
        assert str(endpoint) == f"[fe80::1%{number}]:80"
        assert await resolve(endpoint.host, endpoint.port) == [endpoint]


@pytest.mark.parametrize(
    "host, service, text",
    [
        ("256.0.0.1", 80, "cannot resolve 256.0.0.1:80: "),
        ("::g", 80, "cannot resolve [::g]:80: "),
        ("127.0.0.1", "no-such-service", "cannot resolve 127.0.0.1:no-such-service: "),
        ("a..b", 80, "cannot resolve a..b:80: "),
        ("\udcff", 80, "cannot resolve \\xff:80: "),
        ("fe80::1%nosuch0", 80, "cannot resolve [fe80::1%nosuch0]:80: there is no network interface nosuch0"),
    ],
)
@on_loops
@pytest.mark.gen_test
async def test_what_does_not_resolve_is_named(io_loop: IOLoop, host: str, service: int | str, text: str) -> None:
    with pytest.raises(ResolveError, match="^" + re.escape(text)) as caught:
        await resolve(host, service)
    assert isinstance(caught.value, socket.gaierror)
    assert caught.value.errno


@pytest.mark.parametrize(
    "host, service, option",
    [
        (b"127.0.0.1", 80, "host"),
        (7, 80, "host"),
        ("127.0.0.1\0.example.org", 80, "host"),
        ("127.0.0.1", 65536, "service"),
        ("127.0.0.1", True, "service"),
        ("127.0.0.1", None, "service"),
        ("127.0.0.1", "", "service"),
    ],
)
@on_loops
@pytest.mark.gen_test
async def test_arguments_that_cannot_be_resolved_are_named(
    io_loop: IOLoop, host: Any, service: Any, option: str
) -> None:
    with pytest.raises(OptionError, match=f"^{option}="):
        await resolve(host, service)


# ---- a server on sockets of several kinds


class Echo(TCPServer):
    async def handle_stream(self, stream: IOStream, address: Any) -> None:
        line = await stream.read_until(b"\n")
        if line == b"fail\n":
            raise ZeroDivisionError("made up")
        await stream.write(line)


async def echoes(family: socket.AddressFamily, address: Any) -> bool:
    with socket.socket(family) as client:
        client.connect(address)
        peer = Peer(client)
        peer.send(b"hello\n")
        return await peer.receive_all() == b"hello\n"


@on_loops
@pytest.mark.gen_test
async def test_one_server_listens_on_sockets_of_all_kinds_at_once(io_loop: IOLoop, path: Path) -> None:
    server = Echo()
    server.listen(0, "127.0.0.1")
    server.add_socket(bind_unix_socket(path))
    server.add_socket(socket_from_fd(socket.create_server(("127.0.0.1", 0)).detach()))
    server.bind(0, "127.0.0.1")
    server.start()
    tcp, unix, *more_tcp = server.addresses
    assert unix == str(path)
    assert await echoes(socket.AF_UNIX, unix)
    for address in (tcp, *more_tcp):
        assert await echoes(socket.AF_INET, address)
    server.stop()
    assert not path.exists()
    await eventually(lambda: not server.streams)


@on_loops
@pytest.mark.gen_test
async def test_a_server_that_stopped_may_bind_its_unix_socket_again(io_loop: IOLoop, path: Path) -> None:
    server = Echo()
    for _ in range(2):
        server.add_socket(bind_unix_socket(path))
        assert await echoes(socket.AF_UNIX, str(path))
        server.stop()
        assert not path.exists()
    await eventually(lambda: not server.streams)


@on_loops
@pytest.mark.gen_test
async def test_a_log_line_about_a_unix_client_names_its_socket(
    io_loop: IOLoop, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = Echo()
    server.add_socket(bind_unix_socket(path))
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        peer = Peer(client)
        peer.send(b"fail\n")
        assert await peer.receive_all() == b""
    (record,) = caplog.records
    assert str(path) in record.getMessage()
    server.stop()
    caplog.clear()
    await eventually(lambda: not server.streams)


def test_accept_computes_no_enum_of_the_family_and_type_for_each_connection() -> None:
    (listener,) = bind_sockets(0, "127.0.0.1")
    listener.setblocking(True)
    called: list[str] = []

    def profile(frame: FrameType, event: str, _: object) -> None:
        called.append(frame.f_code.co_name)

    with listener, contextlib.ExitStack() as stack:
        for _ in range(2):  # of the first it may
            stack.enter_context(socket.create_connection(listener.getsockname()))
            called.clear()
            sys.setprofile(profile)
            try:
                connection = listener.accept()[0]
            finally:
                sys.setprofile(None)
            stack.enter_context(connection)
            assert (connection.family, connection.type) == (socket.AF_INET, socket.SOCK_STREAM)
    assert "accept" in called
    assert "_intenum_converter" not in called
