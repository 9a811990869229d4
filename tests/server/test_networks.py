"""`iostreamsrv.net.trusted_proxies`: whose addresses are trusted, and which lists of them are refused."""

import re
import socket
from ipaddress import IPv4Address, ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iostreamsrv import OptionError
from iostreamsrv.net.trusted_proxies import TrustedNetworks
from tests.support.listening import with_ipv6

UNIX_PEERS = ["", b"", "/run/client", b"\0abstract"]
NO_ADDRESSES = [None, (), ("",), ("no address", 1), ("10.0.0.0/8", 1), (10, 1), ("010.0.0.1", 1), 10, ["10.0.0.1", 1]]


def peer_of(listener: socket.socket) -> Any:
    """The address of a client, as the kernel tells it to who accepts."""
    with listener, socket.socket(listener.family) as client:
        client.connect(listener.getsockname())
        connection, address = listener.accept()
        connection.close()
        return address


# ---- who is trusted


@pytest.mark.parametrize(
    "networks, trusted, others",
    [
        (
            ["10.0.0.0/8"],
            ["10.0.0.0", "10.255.255.255", "::ffff:10.0.0.1", "::ffff:a00:1"],
            ["9.255.255.255", "11.0.0.0"],
        ),
        (["10.0.0.5"], ["10.0.0.5", "::ffff:10.0.0.5"], ["10.0.0.4", "10.0.0.6", "::10.0.0.5"]),
        (["2001:db8::/32"], ["2001:db8::", "2001:0DB8::1", "2001:db8::1%eth0"], ["2001:db7::1", "32.1.13.184", "::"]),
        (["fe80::/10"], ["fe80::1", "fe80::1%eth0", "fe80::1%2"], ["fec0::1%eth0"]),
        (["::1"], ["::1"], ["127.0.0.1", "::ffff:127.0.0.1", "::2"]),
        (["::ffff:10.0.0.0/104"], ["10.1.2.3", "::ffff:10.1.2.3"], ["11.0.0.0", "::10.1.2.3"]),
        (["::ffff:10.0.0.5"], ["10.0.0.5", "::ffff:10.0.0.5"], ["10.0.0.4"]),
        (("192.0.2.1", "10.0.0.0/8", "::1"), ["192.0.2.1", "10.1.2.3", "::1"], ["192.0.2.2", "::2"]),
        (["0.0.0.0/1"], ["127.0.0.1"], ["128.0.0.0", "::", "::1"]),
        (["any"], ["10.0.0.1", "::1", "::ffff:10.0.0.1", "fe80::1%eth0"], []),
        (["10.0.0.0/8", "any"], ["192.0.2.1"], []),
        (["unix"], [], ["10.0.0.1", "::1"]),
    ],
)
def test_a_peer_is_trusted_if_it_is_in_one_of_the_networks(
    networks: Any, trusted: list[str], others: list[str]
) -> None:
    known = TrustedNetworks(networks)
    assert [host for host in trusted if (host, 40000) not in known or (host, 40000, 0, 0) not in known] == []
    assert [host for host in others if (host, 40000) in known or (host, 40000, 0, 0) in known] == []


@pytest.mark.parametrize("networks", [["10.0.0.0/8"], ["any"], ["::1", "any"]])
def test_a_unix_socket_is_trusted_only_by_name(networks: list[str]) -> None:
    assert [peer for peer in UNIX_PEERS if peer in TrustedNetworks(networks)] == []
    assert [peer for peer in UNIX_PEERS if peer not in TrustedNetworks([*networks, "unix"])] == []


@pytest.mark.parametrize("address", NO_ADDRESSES, ids=repr)
def test_what_is_no_address_is_not_trusted(address: Any) -> None:
    assert address not in TrustedNetworks(["any", "unix", "10.0.0.0/8"])


@given(network=st.integers(0, 2**32 - 1), prefix=st.integers(1, 32), host=st.ip_addresses(v=4), near=st.booleans())
def test_a_network_has_the_addresses_that_begin_as_it_does(
    network: int, prefix: int, host: IPv4Address, near: bool
) -> None:
    shift = 32 - prefix
    number = network >> shift << shift | int(host) & (1 << shift) - 1 if near else int(host)
    known = TrustedNetworks([f"{IPv4Address(network >> shift << shift)}/{prefix}"])
    inside = number >> shift == network >> shift
    assert ((str(IPv4Address(number)), 1) in known) is inside
    assert ((f"::ffff:{IPv4Address(number)}", 1, 0, 0) in known) is inside


def test_a_client_of_a_listening_socket_is_found() -> None:
    address = peer_of(socket.create_server(("127.0.0.1", 0)))
    assert address in TrustedNetworks(["127.0.0.0/8"])
    assert address not in TrustedNetworks(["10.0.0.0/8", "::1", "unix"])


@with_ipv6
def test_an_ipv4_client_of_a_socket_for_both_is_an_ipv4_client() -> None:
    listener = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    with listener, socket.create_connection(("127.0.0.1", listener.getsockname()[1])):
        connection, address = listener.accept()
        connection.close()
    assert address[0].startswith("::ffff:")
    assert address in TrustedNetworks(["127.0.0.1"])
    assert address not in TrustedNetworks(["::1"])


def test_a_client_of_a_unix_socket_is_found(tmp_path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "socket"))
    listener.listen()
    address = peer_of(listener)
    assert address in TrustedNetworks(["unix"])
    assert address not in TrustedNetworks(["any"])


# ---- what cannot be


@pytest.mark.parametrize(
    "networks", [[], (), "10.0.0.0/8", b"10.0.0.0/8", None, True, 10, {"10.0.0.0/8"}, [10], [None]]
)
def test_what_is_no_list_of_networks_is_refused(networks: Any) -> None:
    problem = f"proxy_protocol={networks!r}: must be a list of networks such as '10.0.0.0/8'"
    with pytest.raises(OptionError, match=f"^{re.escape(problem)}$") as caught:
        TrustedNetworks(networks)
    assert (caught.value.option, caught.value.value) == ("proxy_protocol", networks)


REFUSED = {
    "is no network such as '10.0.0.0/8' or '2001:db8::/32'": [
        *("", " ", "x", "localhost", "Any", "UNIX", "*", "/", "/8", "10", "10.0.0", "10/8", "0x0a000000", "[::1]"),
        *("10.0.0.0/", "10.0.0.0/33", "10.0.0.0/-1", "10.0.0.0/+8", "10.0.0.0/8/8", "10.0.0.0/\uff18", "::/129"),
        *("10.0.0.0/255.0.0.0", "10.0.0.0/0.255.255.255", " 10.0.0.0/8", "10.0.0.0/8 ", "10.0.0.0,10.0.0.1"),
        *("010.0.0.0/8", "10.0.0.256", "10.0.0.1:80", "10.0.0.0-10.0.0.9", "fe80::%1/64", "fe80::1%eth0"),
    ],
    "is every address; say 'any' if you mean that": [
        *("0.0.0.0/0", "::/0", "10.0.0.0/0", "0.0.0.0/00", "2001:db8::/0", "::ffff:0:0/0"),
    ],
    "has IPv4-mapped addresses and a prefix below 96; name the IPv4 network instead": [
        *("::ffff:10.0.0.0/8", "::ffff:0:0/95", "::ffff:10.0.0.1/64", "::/1", "::/80"),
    ],
    "has host bits set; the network is '10.0.0.0/8'": ["10.0.0.1/8", "10.255.255.255/8"],
    "has host bits set; the network is '2001:db8::/32'": ["2001:db8::1/32"],
}


@pytest.mark.parametrize("name, problem", [(name, problem) for problem, names in REFUSED.items() for name in names])
def test_a_network_that_cannot_be_is_named(name: str, problem: str) -> None:
    for networks in ([name], ["10.0.0.0/8", name], ["any", "unix", name]):
        with pytest.raises(OptionError) as caught:
            TrustedNetworks(networks)
        assert str(caught.value) == f"proxy_protocol={networks!r}: {name!r} {problem}"
        assert caught.value.value == networks


@pytest.mark.parametrize(
    "name, problem",
    [("::ffff:0:0/96", "'0.0.0.0/0' is every address"), ("::ffff:10.0.0.1/104", "'10.0.0.1/8' has host bits set")],
)
def test_an_ipv4_mapped_network_is_refused_for_what_the_ipv4_network_would_be(name: str, problem: str) -> None:
    with pytest.raises(OptionError, match=problem):
        TrustedNetworks([name])


@given(name=st.text(max_size=20) | st.from_regex(r"[0-9a-f:.]{1,20}(/[0-9]{1,3})?", fullmatch=True))
def test_any_other_text_is_a_network_or_refused(name: str) -> None:
    try:
        TrustedNetworks([name])
    except OptionError:
        return
    assert name in ("any", "unix") or ip_network(name).prefixlen > 0
