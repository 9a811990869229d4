"""The networks whose word is trusted: from which a PROXY header is taken."""

from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_interface

from ..errors import OptionError

ANY = "any"
UNIX = "unix"

MAPPED = IPv6Address("::ffff:0:0")
"""Where IPv4 addresses are among IPv6's: a socket that listens on both has its IPv4 clients there."""


class TrustedNetworks:
    """The peers whose PROXY header is believed, as ``proxy_protocol`` names them. ::

        trusted = TrustedNetworks(["10.0.0.0/8", "2001:db8::7", "unix"])
        assert ("10.1.2.3", 40000) in trusted and ("::ffff:10.1.2.3", 40000, 0, 0) in trusted
        assert ("192.0.2.1", 40000) not in trusted

    Whoever is trusted can pretend to be any client, so the list should be as short as can be.

    :param networks: a list or tuple of strings, at least one: networks as ``"10.0.0.0/8"``, single addresses as
        ``"10.0.0.5"``, ``"unix"`` for whoever may connect to a Unix socket, and ``"any"`` for every IPv4 and IPv6
        address, which is right only where a firewall lets nobody but the proxy in.
    :raises OptionError: anything else: no network, set host bits, ``0.0.0.0/0`` and ``::/0`` (say ``"any"``), and a
        network with IPv4-mapped addresses and a prefix below 96, as in ``::ffff:10.0.0.0/8``.
    """

    __slots__ = ("_any", "_networks", "_unix")

    def __init__(self, networks: list[str] | tuple[str, ...]) -> None:
        if not isinstance(networks, list | tuple) or not networks or not all(type(name) is str for name in networks):
            raise OptionError("proxy_protocol", networks, "must be a list of networks such as '10.0.0.0/8'")
        self._any = ANY in networks
        self._unix = UNIX in networks
        try:
            self._networks = [_network(name) for name in networks if name not in (ANY, UNIX)]
        except ValueError as error:
            raise OptionError("proxy_protocol", networks, str(error)) from None

    def __contains__(self, address: object) -> bool:
        """Whether a peer with this address, as ``getpeername`` gives it, is trusted."""
        if isinstance(address, str | bytes):
            return self._unix
        if not isinstance(address, tuple) or not address:
            return False
        try:
            host = ip_address(str(address[0]))
        except ValueError:
            return False
        if isinstance(host, IPv6Address):
            host = host.ipv4_mapped or host
        return self._any or any(host in network for network in self._networks)


def _network(name: str) -> IPv4Network | IPv6Network:
    """:raises ValueError: the message says what is wrong with it."""
    address, slash, prefix = name.partition("/")
    try:
        if "%" in address or (slash and not prefix.isdecimal()):  # a mask: there is one way to write a network
            raise ValueError
        interface = ip_interface(name)
    except ValueError:
        raise ValueError(f"{name!r} is no network such as '10.0.0.0/8' or '2001:db8::/32'") from None
    ip, network = interface.ip, interface.network
    if not network.prefixlen:
        raise ValueError(f"{name!r} is everybody; say {ANY!r} where that is meant")
    if network.prefixlen < 96 and MAPPED in network:
        raise ValueError(f"{name!r} has IPv4-mapped addresses and a prefix below 96; name the IPv4 network instead")
    if isinstance(ip, IPv6Address) and ip.ipv4_mapped is not None:
        return _network(f"{ip.ipv4_mapped}/{network.prefixlen - 96}")
    if ip != network.network_address:
        raise ValueError(f"{name!r} has host bits set; the network is '{network}'")
    return network
