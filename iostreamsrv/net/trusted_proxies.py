"""The networks of proxies whose PROXY header is trusted."""

from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_interface

from ..errors import OptionError

ANY = "any"
UNIX = "unix"

MAPPED = IPv6Address("::ffff:0:0")
"""The IPv6 range of IPv4-mapped addresses: those of IPv4 clients on a socket that listens for both."""


class TrustedNetworks:
    """The peers whose PROXY header is trusted, from the option ``proxy_protocol``. ::

        trusted = TrustedNetworks(["10.0.0.0/8", "2001:db8::7", "unix"])
        assert ("10.1.2.3", 40000) in trusted and ("::ffff:10.1.2.3", 40000, 0, 0) in trusted
        assert ("192.0.2.1", 40000) not in trusted

    A trusted peer can pretend to be any client, so keep the list short.

    :param networks: a list or tuple of strings, at least one: networks as ``"10.0.0.0/8"``, single addresses as
        ``"10.0.0.5"``, ``"unix"`` for all that may connect to a Unix socket, and ``"any"`` for every IPv4 and IPv6
        address, which is safe only where a firewall admits nothing but the proxy.
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
    """:raises ValueError: it is no network; the message says why."""
    address, slash, prefix = name.partition("/")
    try:
        if "%" in address or (slash and not prefix.isdecimal()):  # no netmasks: a network is written in one way
            raise ValueError
        interface = ip_interface(name)
    except ValueError:
        raise ValueError(f"{name!r} is no network such as '10.0.0.0/8' or '2001:db8::/32'") from None
    ip, network = interface.ip, interface.network
    if not network.prefixlen:
        raise ValueError(f"{name!r} is every address; say {ANY!r} if you mean that")
    if network.prefixlen < 96 and MAPPED in network:
        raise ValueError(f"{name!r} has IPv4-mapped addresses and a prefix below 96; name the IPv4 network instead")
    if isinstance(ip, IPv6Address) and ip.ipv4_mapped is not None:
        return _network(f"{ip.ipv4_mapped}/{network.prefixlen - 96}")
    if ip != network.network_address:
        raise ValueError(f"{name!r} has host bits set; the network is '{network}'")
    return network
