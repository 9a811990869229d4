"""Certificates: ``ssl_options`` become a context that is checked, and can be replaced while clients are served.

`Certificates` is what a server has; `client_context` is for a client. For development there are certificates without
files or tools: `self_signed` for one server, `CertificateAuthority` for several and for clients. ::

    options = self_signed().write("/tmp/echo")
    certificates = Certificates(options)
    certificates.context  # an ssl.SSLContext, for the next connection
"""

import datetime
import difflib
import functools
import os
import re
import ssl
import stat
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cryptography import x509

from .errors import CertificateError
from .issuing import CertificateAuthority, KeyPair, self_signed
from .logs import general
from .options import check_flag
from .pemfiles import Pair, blocks_in

__all__ = ["CertificateAuthority", "Certificates", "KeyPair", "client_context", "self_signed"]

SSLOptions = Mapping[str, Any] | ssl.SSLContext
"""What ``ssl_options`` may be."""

CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20:!PSK"
"""For TLS 1.2: forward secrecy and authenticated encryption, nothing else. (TLS 1.3 has no other ciphers.)"""

DAY = 86400.0

EXPIRY_NOTICE = 14 * DAY
"""How long before its end a certificate is warned of: whoever renews at two thirds of 90 days is 16 days late then."""

FOR_A_NAME = ("certfile", "keyfile", "password")
FOR_A_CLIENT = (*FOR_A_NAME, "ca_certs", "cert_reqs", "ciphers", "alpn", "ssl_version")
FOR_A_SERVER = (*FOR_A_CLIENT, "sni")
ALIASES = {"cert_file": "certfile", "key_file": "keyfile"}


class Certificates:
    """What a server's ``ssl_options`` amount to: loaded and checked when made, and again at each :meth:`reload`. ::

        certificates = Certificates({
            "certfile": "/etc/echo/cert.pem",
            "keyfile": "/etc/echo/key.pem",
            "sni": {"*.example.org": {"certfile": "/etc/echo/org.pem", "keyfile": "/etc/echo/org.key"}},
        })

    Keys of the dict:

    - ``certfile`` (or ``cert_file``): the certificate and its chain, in PEM, the server's own first.
    - ``keyfile`` (or ``key_file``): its private key; not needed if ``certfile`` holds that, too.
    - ``password``: of an encrypted key: str, bytes, or a function without arguments that returns it.
    - ``ca_certs``: a file with the authorities whose clients are accepted.
    - ``cert_reqs``: `ssl.CERT_REQUIRED` refuses clients without a certificate, `ssl.CERT_OPTIONAL` only those with a
      wrong one; both need ``ca_certs``. `ssl.CERT_NONE`, the default, asks for none.
    - ``ciphers``: for TLS 1.2, in OpenSSL's notation; the default is :data:`CIPHERS`.
    - ``alpn``: protocols in the server's order of preference: ``["h2", "http/1.1"]``.
    - ``ssl_version``: Tornado's; `ssl.PROTOCOL_TLS` and the two after it are taken, and say nothing.
    - ``sni``: certificates by the name a client asks for, each a dict of ``certfile``, ``keyfile``, ``password``. An
      exact name goes before ``*.name``, which stands for one label; all others get the certificate above.

    Their contexts have TLS 1.2 and 1.3, no compression, no renegotiation, and session tickets.

    An `ssl.SSLContext` is taken as it is, and tried: a handshake in memory finds out that it has no certificate. (One
    with an ``sni_callback`` is not tried: it may find its certificates there.)

    A certificate that has expired, or is not valid yet, is an error in the log and is served all the same. A key that
    all users can read is a `UserWarning`.

    :param ssl_options: such a dict, or an `ssl.SSLContext`.
    :param strict_validity: whether an expired certificate, or one that is not valid yet, raises.
    :param allow_legacy_tls: whether a context may have versions before TLS 1.2.
    :raises CertificateError: a file is missing, unreadable or not what it should be, a key is another one's, an option
        does not exist or cannot have this value.
    """

    def __init__(
        self, ssl_options: SSLOptions, *, strict_validity: bool = False, allow_legacy_tls: bool = False
    ) -> None:
        self._strict_validity = check_flag("strict_validity", strict_validity)
        self._allow_legacy_tls = check_flag("allow_legacy_tls", allow_legacy_tls)
        self._ssl_options = ssl_options if isinstance(ssl_options, ssl.SSLContext) else _server_options(ssl_options)
        self._warned: float | None = None
        self._served = self._load()
        if isinstance(self._ssl_options, dict):
            _warn_of_readable_keys(self._ssl_options)

    @property
    def context(self) -> ssl.SSLContext:
        """The context in force. Each new connection asks for it; those there are keep theirs."""
        return self._served.context

    @property
    def expires_at(self) -> float | None:
        """When the certificate expires, the first of several, in seconds of `time.time`; None if that is not known."""
        return min((leaf.until for leaf in self._served.leaves), default=None)

    def reload(self) -> bool:
        """Read all files again; whether what they hold is in force. ::

            if not certificates.reload():
                ...  # the log says why

        The new context is built and checked aside. If something is wrong with it the old one stays, as a whole, and
        there is one error in the log: a file may be there by half, or a certificate not yet have its key. Nothing is
        raised. Connections there are go on with what they have.

        A given `ssl.SSLContext` has no files that would be known: nothing happens, and that is True.
        """
        if isinstance(self._ssl_options, ssl.SSLContext):
            return True
        try:
            self._served = self._load()
        except CertificateError as error:
            general.error("Certificates not reloaded, the old ones stay in force: %s", error)
            return False
        return True

    def warn_of_expiry(self, now: float | None = None) -> None:
        """Log a warning for each certificate with 14 days or less to go. It may be called often: once a day it warns.

        :param now: the time, in seconds of `time.time`; None: it is looked up.
        """
        now = time.time() if now is None else now
        if self._warned is not None and now - self._warned < DAY:
            return
        for leaf in dict.fromkeys(self._served.leaves):
            if leaf.until - now <= EXPIRY_NOTICE:
                self._warned = now
                general.warning("%s: %s", leaf.place, leaf.problem(now) or f"expires on {_date(leaf.until)}")

    def _load(self) -> "_Served":
        if isinstance(self._ssl_options, ssl.SSLContext):
            served = _taken(self._ssl_options, self._allow_legacy_tls)
        else:
            served = _built(self._ssl_options)
        now = time.time()
        for leaf in dict.fromkeys(served.leaves):
            if problem := leaf.problem(now):
                if self._strict_validity:
                    raise CertificateError(leaf.option, leaf.value, problem)
                general.error("%s: %s; it is served all the same", leaf.place, problem)
        return served


def client_context(ssl_options: SSLOptions | None = None) -> ssl.SSLContext:
    """The context of a client, which verifies the server and its name unless told otherwise. ::

        context = client_context({"ca_certs": "ca.pem", "alpn": ["echo/1"]})

    :param ssl_options: None: the authorities that the system trusts. An `ssl.SSLContext`: that one. A dict:
        ``ca_certs``, a file with the authorities to trust instead; ``cert_reqs``, of which `ssl.CERT_NONE` verifies
        neither certificate nor name; ``certfile``, ``keyfile`` and ``password`` for a server that asks for a
        certificate; ``ciphers`` and ``alpn``. Each call reads its files: make one context for many connections.
    :returns: the context; for None always the same one, which is not to be changed.
    :raises CertificateError: see `Certificates`.
    """
    if ssl_options is None:
        return _trusting_the_system()
    if isinstance(ssl_options, ssl.SSLContext):
        if ssl_options.protocol == ssl.PROTOCOL_TLS_SERVER:
            raise CertificateError("ssl_options", ssl_options, "is the context of a server, not of a client")
        return ssl_options
    options = _checked(ssl_options, FOR_A_CLIENT)
    context = ssl.create_default_context() if "ca_certs" not in options else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _configure(context, options)
    if "certfile" in options or "keyfile" in options:
        Pair.read(options).load_into(context)
    return context


@functools.cache  # reading the system's authorities takes 10 ms and more
def _trusting_the_system() -> ssl.SSLContext:
    context = ssl.create_default_context()
    _configure(context, {})
    return context


# ---- options


def _server_options(ssl_options: object) -> dict[str, Any]:
    options = _checked(ssl_options, FOR_A_SERVER)
    if options.get("cert_reqs") and "ca_certs" not in options:
        raise CertificateError("cert_reqs", options["cert_reqs"], "needs ca_certs: the authorities of the clients")
    names = options.get("sni", {})
    if not isinstance(names, Mapping):
        raise CertificateError("sni", names, 'must be a dict: {"example.org": {"certfile": …, "keyfile": …}}')
    options["sni"] = {_host(name): _checked(pair, FOR_A_NAME, f"sni[{name!r}]") for name, pair in names.items()}
    return options


def _checked(given: object, known: tuple[str, ...], option: str = "ssl_options") -> dict[str, Any]:
    """The options that are given and not None, by the names they have here."""
    if not isinstance(given, Mapping):
        raise CertificateError(option, given, f"must be a dict{' or an ssl.SSLContext' if known != FOR_A_NAME else ''}")
    options: dict[str, Any] = {}
    for name, value in given.items():
        key = ALIASES.get(name, name)
        if key not in known:
            near = difflib.get_close_matches(str(name), known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
            raise CertificateError(option, name, f"there is no such key ({hint})")
        if key in options:
            raise CertificateError(option, name, f"is another name of {key!r}, which is there, too")
        if value is not None:
            options[key] = CHECKS.get(key, _anything)(value, key if known != FOR_A_NAME else f"{option}.{key}")
    return options


def _anything(value: Any, option: str) -> Any:
    return value


def _path(value: Any, option: str) -> str:
    try:
        return os.fsdecode(value)
    except TypeError:
        raise CertificateError(option, value, "must be the path of a file") from None


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
    if value not in (ssl.PROTOCOL_TLS, ssl.PROTOCOL_TLS_SERVER, ssl.PROTOCOL_TLS_CLIENT):
        raise CertificateError(option, value, "cannot be chosen here: give an ssl.SSLContext")
    return value


CHECKS: dict[str, Callable[[Any, str], Any]] = {
    "certfile": _path,
    "keyfile": _path,
    "ca_certs": _path,
    "password": _password,
    "cert_reqs": _verify_mode,
    "alpn": _protocols,
    "ssl_version": _version,
}


def _host(name: object) -> str:
    """A name of ``sni`` as it arrives: in lower case, not ASCII in IDNA."""
    try:
        host = name.lower().rstrip(".").encode("idna").decode() if isinstance(name, str) else ""
    except UnicodeError:
        host = ""
    if not re.fullmatch(r"(\*\.)?[\w-]+(\.[\w-]+)*", host):
        raise CertificateError("sni", name, "must be the name of a host, or *. and a domain")
    return host


# ---- contexts


class _Leaf(NamedTuple):
    """A server's own certificate: where it is from, and its time."""

    option: str
    value: object
    since: float
    until: float

    @classmethod
    def of(cls, option: str, value: object, certificate: x509.Certificate) -> "_Leaf":
        since, until = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        return cls(option, value, since.timestamp(), until.timestamp())

    @property
    def place(self) -> str:
        return f"{self.option}={self.value!r}"

    def problem(self, now: float) -> str | None:
        if now > self.until:
            return f"the certificate expired on {_date(self.until)}"
        return f"the certificate is not valid before {_date(self.since)}" if now < self.since else None


def _date(seconds: float) -> str:
    return f"{datetime.datetime.fromtimestamp(seconds, datetime.UTC):%Y-%m-%d %H:%M} UTC"


class _Served(NamedTuple):
    """All that is swapped by a reload."""

    context: ssl.SSLContext
    leaves: tuple[_Leaf, ...]


class _NamedContext(ssl.SSLContext):
    """The context of a name. It keeps the one that chooses it: a connection holds only its last context, yet OpenSSL
    calls the ``sni_callback`` of its first one, which must not be gone then."""

    chosen_by: ssl.SSLContext


def _built(options: dict[str, Any]) -> _Served:
    """The context that a dict asks for, with those of its names."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    leaves = [_fill(context, options)]
    named = {}
    for name, pair in options["sni"].items():
        named[name] = _NamedContext(ssl.PROTOCOL_TLS_SERVER)
        named[name].chosen_by = context
        leaves.append(_fill(named[name], {**options, **dict.fromkeys(FOR_A_NAME), **pair}, f"sni[{name!r}]."))
    if named:
        context.sni_callback = _chooser(named)
    return _Served(context, tuple(leaves))


def _chooser(named: dict[str, _NamedContext]) -> Callable[[ssl.SSLObject, str | None, ssl.SSLContext], None]:
    """The ``sni_callback`` that knows these names. It builds nothing: a context made in it could be gone too early."""

    def choose(connection: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
        host = (name or "").lower().rstrip(".")
        context = named.get(host) or named.get("*." + host.partition(".")[2])
        if context is not None:
            connection.context = context

    return choose


def _fill(context: ssl.SSLContext, options: dict[str, Any], prefix: str = "") -> _Leaf:
    """Give a server's context what the options say, and try it."""
    context.set_ciphers(CIPHERS)
    context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE | ssl.OP_NO_RENEGOTIATION
    _configure(context, options)
    pair = Pair.read(options, prefix)
    pair.load_into(context)
    option = prefix + "certfile"
    _try(context, option, pair.certfile)
    return _Leaf.of(option, pair.certfile, pair.certificate)


def _configure(context: ssl.SSLContext, options: dict[str, Any]) -> None:
    """What servers and clients have in common."""
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION
    if "ciphers" in options:
        try:
            context.set_ciphers(options["ciphers"])
        except (ssl.SSLError, TypeError):
            raise CertificateError("ciphers", options["ciphers"], "names no cipher that OpenSSL has here") from None
    if "alpn" in options:
        context.set_alpn_protocols(options["alpn"])
    if "ca_certs" in options:
        _trust(context, options["ca_certs"])
    if "cert_reqs" in options:
        context.check_hostname = context.check_hostname and options["cert_reqs"] != ssl.CERT_NONE
        context.verify_mode = options["cert_reqs"]


def _trust(context: ssl.SSLContext, path: str) -> None:
    blocks = blocks_in("ca_certs", path, b"CERTIFICATE")
    if not blocks:
        raise CertificateError("ca_certs", path, "holds no certificate in PEM")
    for block in blocks:
        try:
            context.load_verify_locations(cadata=block.decode())
        except (ssl.SSLError, ValueError):
            raise CertificateError("ca_certs", path, "holds a damaged certificate") from None


def _taken(context: ssl.SSLContext, allow_legacy_tls: bool) -> _Served:
    """A context that was made elsewhere, unless it cannot serve."""
    if context.protocol == ssl.PROTOCOL_TLS_CLIENT:
        raise CertificateError("ssl_options", context, "is the context of a client, not of a server")
    if not allow_legacy_tls and _speaks_legacy_tls(context):
        raise CertificateError(
            "ssl_options",
            context,
            "has versions before TLS 1.2: set its minimum_version to ssl.TLSVersion.TLSv1_2 (or allow_legacy_tls=True)",
        )
    if context.sni_callback is not None:
        return _Served(context, ())
    certificate = _try(context, "ssl_options", context)
    return _Served(context, () if certificate is None else (_Leaf.of("ssl_options", context, certificate),))


def _speaks_legacy_tls(context: ssl.SSLContext) -> bool:
    if context.protocol == ssl.PROTOCOL_TLSv1_2:  # which has no minimum_version of its own
        return False
    lowest, highest = context.minimum_version, context.maximum_version
    return any(
        (lowest <= version <= highest or (lowest <= version and highest == ssl.TLSVersion.MAXIMUM_SUPPORTED))
        and not context.options & switched_off
        for version, switched_off in LEGACY
    )


LEGACY = (
    (ssl.TLSVersion.SSLv3, ssl.OP_NO_SSLv3),
    (ssl.TLSVersion.TLSv1, ssl.OP_NO_TLSv1),
    (ssl.TLSVersion.TLSv1_1, ssl.OP_NO_TLSv1_1),
)


def _try(context: ssl.SSLContext, option: str, value: object) -> x509.Certificate | None:
    """Let a client in memory shake hands with ``context``: the certificate it gets, None if it must show its own first.

    :raises CertificateError: there is none.
    """
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = context.wrap_bio(to_server, to_client, server_side=True)
    client = _undemanding().wrap_bio(to_client, to_server)
    for side in (client, server) * 4:  # TLS 1.2 needs two turns of each, a first guess that was wrong one more
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            if side is server and error.reason in NOTHING_TO_SHOW:
                raise CertificateError(
                    option, value, f"no certificate can be served from it ({error.reason})"
                ) from None
            break
    try:
        return x509.load_der_x509_certificate(client.getpeercert(binary_form=True) or b"")
    except ValueError:  # the handshake was not finished, or showed nothing that would be known
        return None


NOTHING_TO_SHOW = {"NO_SHARED_CIPHER", "NO_SUITABLE_SIGNATURE_ALGORITHM", "UNSUPPORTED_PROTOCOL"}
"""What OpenSSL says of a server that has no certificate of use, by version; the client in memory has everything else.

Other errors are for real clients: it has no certificate of its own, say.
"""


@functools.cache
def _undemanding() -> ssl.SSLContext:
    """The context of a client that takes what it gets."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    context.set_ciphers("ALL:@SECLEVEL=0")
    return context


def _warn_of_readable_keys(options: dict[str, Any]) -> None:
    pairs = [options, *options["sni"].values()]
    for keyfile in dict.fromkeys(pair.get("keyfile", pair["certfile"]) for pair in pairs):
        mode = stat.S_IMODE(Path(keyfile).stat().st_mode)
        if mode & stat.S_IROTH:
            warnings.warn(
                f"keyfile={keyfile!r}: all users can read the private key (mode {mode:04o}): chmod 600", stacklevel=3
            )
