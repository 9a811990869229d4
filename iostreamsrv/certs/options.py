"""The keys of ``ssl_options``: which there are, and what each may be."""

import os
import re
import ssl
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ..errors import CertificateError
from ..runtime.checks import did_you_mean, is_int

SSLOptions = Mapping[str, Any] | ssl.SSLContext
"""What ``ssl_options`` may be."""

SNI_KEYS = ("certfile", "keyfile", "password")
CLIENT_KEYS = (*SNI_KEYS, "ca_certs", "crl", "cert_reqs", "ciphers", "alpn", "minimum_version", "ssl_version")
SERVER_KEYS = (*CLIENT_KEYS, "num_tickets", "sni")
ALIASES = {"cert_file": "certfile", "key_file": "keyfile"}


def server_options(ssl_options: object) -> dict[str, Any]:
    """The checked options of a server.

    :raises CertificateError: a key is unknown, its value is invalid, or an option that it needs is missing.
    """
    options = _checked(ssl_options, SERVER_KEYS)
    if options.get("cert_reqs") and "ca_certs" not in options:
        raise CertificateError("cert_reqs", options["cert_reqs"], "needs ca_certs: the authorities of the clients")
    if "crl" in options and "ca_certs" not in options:
        raise CertificateError("crl", options["crl"], "needs ca_certs: the authorities of the clients")
    names = options.get("sni", {})
    if not isinstance(names, Mapping):
        raise CertificateError("sni", names, 'must be a dict: {"example.org": {"certfile": …, "keyfile": …}}')
    options["sni"] = {_sni_name(name): _checked(pair, SNI_KEYS, f"sni[{name!r}]") for name, pair in names.items()}
    return options


def client_options(ssl_options: object) -> dict[str, Any]:
    """The checked options of a client.

    :raises CertificateError: a key is unknown, or its value is invalid.
    """
    return _checked(ssl_options, CLIENT_KEYS)


def files_of(options: Mapping[str, Any]) -> Iterator[str]:
    """The paths of all files that checked options name."""
    for pair in (options, *options.get("sni", {}).values()):
        yield from (*pair.get("certfile", ()), *pair.get("keyfile", ()))
    yield from (options[name] for name in ("ca_certs", "crl") if name in options)


def _checked(given: object, known: tuple[str, ...], option: str = "ssl_options") -> dict[str, Any]:
    """The options that are given and not None, under the names of this package, each checked."""
    if not isinstance(given, Mapping):
        raise CertificateError(option, given, f"must be a dict{' or an ssl.SSLContext' if known != SNI_KEYS else ''}")
    options: dict[str, Any] = {}
    for name, value in given.items():
        key = ALIASES.get(name, name)
        if key not in known:
            raise CertificateError(option, name, f"there is no such key ({did_you_mean(name, known)})")
        if key in options:
            raise CertificateError(option, name, f"is another name of {key!r}, which is there, too")
        if value is not None:
            options[key] = CHECKS.get(key, _unchecked)(value, key if known != SNI_KEYS else f"{option}.{key}")
    return options


def _unchecked(value: Any, option: str) -> Any:
    return value


def _path(value: Any, option: str) -> str:
    try:
        return os.fsdecode(value)
    except TypeError:
        raise CertificateError(option, value, "must be the path of a file") from None


def _paths(value: Any, option: str) -> list[str]:
    if not isinstance(value, list | tuple):
        return [_path(value, option)]
    if not value:
        raise CertificateError(option, value, "must be the path of a file, or a list of some")
    return [_path(each, f"{option}[{number}]") for number, each in enumerate(value)]


def _passwords(value: Any, option: str) -> list[Any]:
    if not isinstance(value, list | tuple):
        return [_password(value, option)]
    return [None if each is None else _password(each, f"{option}[{number}]") for number, each in enumerate(value)]


def _password(value: Any, option: str) -> Any:
    if not callable(value) and not isinstance(value, str | bytes | bytearray):
        raise CertificateError(option, type(value), "must be str, bytes or a function that returns it")
    return value


def _verify_mode(value: Any, option: str) -> ssl.VerifyMode:
    if isinstance(value, bool) or value not in tuple(ssl.VerifyMode):
        raise CertificateError(option, value, "must be ssl.CERT_NONE, ssl.CERT_OPTIONAL or ssl.CERT_REQUIRED")
    return ssl.VerifyMode(value)


def _protocols(value: Any, option: str) -> list[str]:
    if not isinstance(value, list | tuple) or not value or not all(map(_is_protocol, value)):
        raise CertificateError(option, value, 'must be a list of names, each of 1 to 255 ASCII letters: ["h2"]')
    return list(value)


def _is_protocol(value: object) -> bool:
    return isinstance(value, str) and value.isascii() and 1 <= len(value) <= 255


def _version(value: Any, option: str) -> Any:
    if value not in (ssl.PROTOCOL_TLS, ssl.PROTOCOL_TLS_SERVER, ssl.PROTOCOL_TLS_CLIENT, ssl.PROTOCOL_TLSv1_2):
        raise CertificateError(option, value, "cannot be set here: pass an ssl.SSLContext")
    return value


def _minimum_version(value: Any, option: str) -> ssl.TLSVersion:
    if value not in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        raise CertificateError(option, value, "must be ssl.TLSVersion.TLSv1_2 or ssl.TLSVersion.TLSv1_3")
    return ssl.TLSVersion(value)


def _number_of_tickets(value: Any, option: str) -> int:
    if not is_int(value, 0, 255):
        raise CertificateError(option, value, "must be an integer from 0 to 255")
    return value


CHECKS: dict[str, Callable[[Any, str], Any]] = {
    "certfile": _paths,
    "keyfile": _paths,
    "ca_certs": _path,
    "crl": _path,
    "password": _passwords,
    "cert_reqs": _verify_mode,
    "alpn": _protocols,
    "minimum_version": _minimum_version,
    "num_tickets": _number_of_tickets,
    "ssl_version": _version,
}


def _sni_name(name: object) -> str:
    """A name of ``sni`` as it arrives: in lower case, not ASCII in IDNA."""
    try:
        host = name.lower().rstrip(".").encode("idna").decode() if isinstance(name, str) else ""
    except UnicodeError:
        host = ""
    if not re.fullmatch(r"(\*\.)?[\w-]+(\.[\w-]+)*", host):
        raise CertificateError("sni", name, "must be the name of a host, or *. and a domain")
    return host
