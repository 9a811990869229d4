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
import logging
import math
import os
import re
import ssl
import stat
import warnings
import weakref
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from .certs.development import CertificateAuthority, KeyPair, self_signed
from .certs.pem import Pair, crls_in, revoke, trust
from .errors import CertificateError
from .options import check_flag
from .runtime.clock import current_wall_time
from .runtime.logs import general

__all__ = ["CertificateAuthority", "Certificates", "KeyPair", "Reload", "client_context", "self_signed"]

SSLOptions = Mapping[str, Any] | ssl.SSLContext
"""What ``ssl_options`` may be."""

CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20:!PSK"
"""For TLS 1.2: forward secrecy and authenticated encryption, nothing else. (TLS 1.3 has no other ciphers.)"""

DAY = 86400.0

EXPIRY_NOTICE = 14 * DAY
"""How long before its end a certificate is warned of: whoever renews at two thirds of 90 days is 16 days late then."""

FOR_A_NAME = ("certfile", "keyfile", "password")
FOR_A_CLIENT = (*FOR_A_NAME, "ca_certs", "crl", "cert_reqs", "ciphers", "alpn", "minimum_version", "ssl_version")
FOR_A_SERVER = (*FOR_A_CLIENT, "num_tickets", "sni")
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
    - All three may be lists, of pairs with keys of different kinds: ``"certfile": ["ec.pem", "rsa.pem"], "keyfile":
      ["ec.key", "rsa.key"]``. A client gets one that it can verify. One ``password`` is for all keys.
    - ``ca_certs``: a file with the authorities whose clients are accepted.
    - ``crl``: a file with the lists of certificates that these authorities, each of them, have revoked. A client whose
      authority has no list there, or an expired one, is refused.
    - ``cert_reqs``: `ssl.CERT_REQUIRED` refuses clients without a certificate, `ssl.CERT_OPTIONAL` only those with a
      wrong one; both need ``ca_certs``. `ssl.CERT_NONE`, the default, asks for none.
    - ``ciphers``: for TLS 1.2, in OpenSSL's notation; the default is :data:`CIPHERS`.
    - ``alpn``: protocols in the server's order of preference: ``["h2", "http/1.1"]``.
    - ``minimum_version``: `ssl.TLSVersion.TLSv1_2`, the default, or `ssl.TLSVersion.TLSv1_3`.
    - ``num_tickets``: how many tickets for a resumption a client of TLS 1.3 gets, 0 to 255; OpenSSL's default is 2.
    - ``ssl_version``: Tornado's; `ssl.PROTOCOL_TLS` and the two after it are taken, and say nothing.
    - ``sni``: certificates by the name a client asks for, each a dict of ``certfile``, ``keyfile``, ``password``. An
      exact name goes before ``*.name``, which stands for one label; all others get the certificate above.

    Their contexts have TLS 1.2 and 1.3, no compression, no renegotiation, and session tickets.

    OpenSSL reads the files, and decides what can be served; each certificate is tried by a handshake in memory.

    An `ssl.SSLContext` is tried, too, unless it has an ``sni_callback``, where it may find its certificates. It is
    taken as it is, but for one whose ``minimum_version`` was left at `ssl.TLSVersion.MINIMUM_SUPPORTED`, as some
    systems' `ssl.create_default_context` does: that is set to TLS 1.2, with a line in the log. One that asks for older
    versions is refused.

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
        self._prepared: _Served | CertificateError | None = None
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
        return min((term.until for term in self._served.terms if term.what == CERTIFICATE), default=None)

    def reload(self) -> bool:
        """Read all files again; whether what they hold is in force. ::

            if not certificates.reload():
                ...  # the log says why

        The new context is built and checked aside. If something is wrong with it the old one stays, as a whole, and
        there is one error in the log: a file may be there by half, or a certificate not yet have its key. Nothing is
        raised. Connections there are go on with what they have.

        A given `ssl.SSLContext` stays as it is, as its files are not known: that is False, and a warning.
        """
        outcome = self.renew()
        general.log(outcome.level, "%s", outcome.text)
        return outcome.done

    def prepare(self) -> None:
        """Read all files for the next :meth:`renew` or :meth:`reload`, which then merely takes what was read. A loop
        has this done in another thread.
        """
        if not isinstance(self._ssl_options, ssl.SSLContext):
            self._prepared = self._read()

    def renew(self) -> "Reload":
        """:meth:`reload` for those who write their own log."""
        if isinstance(self._ssl_options, ssl.SSLContext):
            text = f"Certificates not reloaded: the files of {self._ssl_options} are not known (a dict names them)"
            return Reload(logging.WARNING, text)
        outcome, self._prepared = self._prepared or self._read(), None
        if isinstance(outcome, CertificateError):
            text = f"Certificates not reloaded, the old ones stay in force: {outcome}"
            return Reload(logging.ERROR, text, outcome)
        self._served = outcome
        return Reload(logging.INFO, f"Certificates reloaded: {', '.join(map(str, outcome.terms))}")

    def warn_of_expiry(self, now: float | None = None) -> None:
        """Log a warning for each certificate with 14 days or less to go. It may be called often: once a day it warns.

        :param now: the time, in seconds of `time.time`; None: it is looked up.
        """
        now = current_wall_time() if now is None else now
        if self._warned is not None and now - self._warned < DAY:
            return
        for term in dict.fromkeys(self._served.terms):
            if term.until - now <= NOTICE[term.what]:
                self._warned = now
                general.warning("%s: %s", term.place, term.problem(now) or f"expires on {_date(term.until)}")

    def _read(self) -> "_Served | CertificateError":
        try:
            return self._load()
        except CertificateError as error:
            return error.with_traceback(None)

    def _load(self) -> "_Served":
        if isinstance(self._ssl_options, ssl.SSLContext):
            served = _taken(self._ssl_options, self._allow_legacy_tls)
        else:
            served = _built(self._ssl_options)
        now = current_wall_time()
        for term in dict.fromkeys(served.terms):
            if problem := term.problem(now):
                if self._strict_validity:
                    raise CertificateError(term.option, term.value, problem)
                general.error("%s: %s; %s", term.place, problem, CONSEQUENCE[term.what])
        return served


class Reload(NamedTuple):
    """How a reload went.

    :ivar level: `logging.INFO` where what the files hold is in force.
    :ivar text: what to say of it.
    :ivar error: what was wrong with the files.
    """

    level: int
    text: str
    error: CertificateError | None = None

    @property
    def done(self) -> bool:
        """Whether what the files hold is in force."""
        return self.level == logging.INFO


def client_context(ssl_options: SSLOptions | None = None) -> ssl.SSLContext:
    """The context of a client, which verifies the server and its name unless told otherwise. ::

        context = client_context({"ca_certs": "ca.pem", "alpn": ["echo/1"]})

    :param ssl_options: None: the authorities that the system trusts. An `ssl.SSLContext`: that one. A dict:
        ``ca_certs``, a file with the authorities to trust instead; ``crl``, a file with what they have revoked;
        ``cert_reqs``, of which `ssl.CERT_NONE` verifies neither certificate nor name; ``certfile``, ``keyfile`` and
        ``password`` for a server that asks for a certificate; ``ciphers``, ``alpn`` and ``minimum_version``. Each call
        makes a context and reads its files. (`TCPClient` and `IOStream.start_tls` keep what they made of a dict.)
    :returns: the context; for None always the same one, which is not to be changed.
    :raises CertificateError: see `Certificates`.
    """
    if ssl_options is None:
        return _trusting_the_system()
    if isinstance(ssl_options, ssl.SSLContext):
        if ssl_options.protocol == ssl.PROTOCOL_TLS_SERVER:
            raise CertificateError("ssl_options", ssl_options, "is the context of a server, not of a client")
        return ssl_options
    return _for_a_client(_checked(ssl_options, FOR_A_CLIENT))


def _for_a_client(options: dict[str, Any]) -> ssl.SSLContext:
    context = ssl.create_default_context() if "ca_certs" not in options else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _configure(context, options)
    if "certfile" in options or "keyfile" in options:
        for pair in Pair.all_of(options):
            pair.load_into(context)
    return context


@functools.cache  # reading the system's authorities takes 10 ms and more
def _trusting_the_system() -> ssl.SSLContext:
    context = ssl.create_default_context()
    _configure(context, {})
    return context


def context_for_one(ssl_options: SSLOptions | None, server_side: bool) -> ssl.SSLContext:
    """The context of one connection. That of a dict is kept for the next one, for as long as neither the dict nor the
    files have changed; an `ssl.SSLContext` of a server is tried once.

    :raises CertificateError: see `Certificates` and :func:`client_context`.
    """
    if isinstance(ssl_options, Mapping):
        options = _server_options(ssl_options) if server_side else _checked(ssl_options, FOR_A_CLIENT)
        return _kept(_Recipe(server_side, _hashable(options), tuple(map(_state, _files(options))), options))
    if not server_side:
        return client_context(ssl_options)
    if ssl_options not in TRIED:
        TRIED.add(Certificates(ssl_options).context)  # type: ignore[arg-type]  # which refuses what it should not get
    assert isinstance(ssl_options, ssl.SSLContext)
    return ssl_options


TRIED: weakref.WeakSet[ssl.SSLContext] = weakref.WeakSet()
"""The contexts that were given for one connection, and can serve."""


@dataclass(frozen=True)
class _Recipe:
    """What a context is made of; recipes are equal if what is made of them would be."""

    server_side: bool
    wanted: Hashable
    files: tuple[Hashable, ...]
    options: dict[str, Any] = field(compare=False, repr=False)


@functools.lru_cache(maxsize=16)
def _kept(recipe: _Recipe) -> ssl.SSLContext:
    return Certificates(recipe.options).context if recipe.server_side else _for_a_client(recipe.options)


def _hashable(value: Any) -> Hashable:
    if isinstance(value, Mapping):
        return tuple(sorted((name, _hashable(each)) for name, each in value.items()))
    if isinstance(value, list):
        return tuple(map(_hashable, value))
    return bytes(value) if isinstance(value, bytearray) else value if isinstance(value, Hashable) else id(value)


def _files(options: dict[str, Any]) -> Iterator[str]:
    for pair in (options, *options.get("sni", {}).values()):
        yield from (*pair.get("certfile", ()), *pair.get("keyfile", ()))
    yield from (options[name] for name in ("ca_certs", "crl") if name in options)


def _state(path: str) -> Hashable:
    """What changes when somebody writes to a file or puts another one in its place."""
    try:
        now = os.stat(path)  # noqa: PTH116
    except (OSError, ValueError):
        return None
    return now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns


# ---- options


def _server_options(ssl_options: object) -> dict[str, Any]:
    options = _checked(ssl_options, FOR_A_SERVER)
    if options.get("cert_reqs") and "ca_certs" not in options:
        raise CertificateError("cert_reqs", options["cert_reqs"], "needs ca_certs: the authorities of the clients")
    if "crl" in options and "ca_certs" not in options:
        raise CertificateError("crl", options["crl"], "needs ca_certs: the authorities of the clients")
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
    if value not in (ssl.PROTOCOL_TLS, ssl.PROTOCOL_TLS_SERVER, ssl.PROTOCOL_TLS_CLIENT):
        raise CertificateError(option, value, "cannot be chosen here: give an ssl.SSLContext")
    return value


def _minimum_version(value: Any, option: str) -> ssl.TLSVersion:
    if value not in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        raise CertificateError(option, value, "must be ssl.TLSVersion.TLSv1_2 or ssl.TLSVersion.TLSv1_3")
    return ssl.TLSVersion(value)


def _number_of_tickets(value: Any, option: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 255:
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


class _Term(NamedTuple):
    """The time of a certificate or a CRL, and where that is from."""

    option: str
    value: object
    since: float
    until: float
    what: str

    @classmethod
    def of_certificate(cls, option: str, value: object, certificate: x509.Certificate) -> "_Term":
        since, until = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        return cls(option, value, since.timestamp(), until.timestamp(), CERTIFICATE)

    @classmethod
    def of_crl(cls, option: str, value: object, crl: x509.CertificateRevocationList) -> "_Term":
        until = math.inf if crl.next_update_utc is None else crl.next_update_utc.timestamp()
        return cls(option, value, crl.last_update_utc.timestamp(), until, CRL)

    @property
    def place(self) -> str:
        return f"{self.option}={self.value!r}"

    def __str__(self) -> str:
        return self.place if self.until == math.inf else f"{self.place} until {_date(self.until)}"

    def problem(self, now: float) -> str | None:
        if now > self.until:
            return f"the {self.what} expired on {_date(self.until)}"
        return f"the {self.what} is not valid before {_date(self.since)}" if now < self.since else None


CERTIFICATE = "certificate"
CRL = "CRL"

NOTICE = {CERTIFICATE: EXPIRY_NOTICE, CRL: 0.0}
"""How long before its end it is warned of. (CRLs live for some days.)"""

CONSEQUENCE = {CERTIFICATE: "it is served all the same", CRL: "clients of its authority are refused"}


def _date(seconds: float) -> str:
    return f"{datetime.datetime.fromtimestamp(seconds, datetime.UTC):%Y-%m-%d %H:%M} UTC"


class _Served(NamedTuple):
    """All that is swapped by a reload."""

    context: ssl.SSLContext
    terms: tuple[_Term, ...]


class _NamedContext(ssl.SSLContext):
    """The context of a name. It keeps the one that chooses it: a connection holds only its last context, yet OpenSSL
    calls the ``sni_callback`` of its first one, which must not be gone then."""

    chosen_by: ssl.SSLContext


def _built(options: dict[str, Any]) -> _Served:
    """The context that a dict asks for, with those of its names."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    terms = _fill(context, options)
    named = {}
    for name, pair in options["sni"].items():
        named[name] = _NamedContext(ssl.PROTOCOL_TLS_SERVER)
        named[name].chosen_by = context
        terms += _fill(named[name], {**options, **dict.fromkeys(FOR_A_NAME), **pair}, f"sni[{name!r}].")
    if named:
        context.sni_callback = _chooser(named)
    if "crl" in options:
        terms += [_Term.of_crl("crl", options["crl"], crl) for crl in crls_in("crl", options["crl"])]
    return _Served(context, tuple(terms))


def _chooser(named: dict[str, _NamedContext]) -> Callable[[ssl.SSLObject, str | None, ssl.SSLContext], None]:
    """The ``sni_callback`` that knows these names. It builds nothing: a context made in it could be gone too early."""

    def choose(connection: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
        host = (name or "").lower().rstrip(".")
        context = named.get(host) or named.get("*." + host.partition(".")[2])
        if context is not None:
            connection.context = context

    return choose


def _fill(context: ssl.SSLContext, options: dict[str, Any], prefix: str = "") -> list[_Term]:
    """Give a server's context what the options say. Each of its certificates is tried, alone, as a client gets one."""
    _configure_server(context, options)
    pairs = Pair.all_of(options, prefix)
    kinds: dict[type, Pair] = {}
    terms = []
    for pair in pairs:
        alone = context
        if len(pairs) > 1:
            alone = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            _configure_server(alone, options)
        pair.load_into(alone)
        certificate = _try(alone, pair.certfile_option, pair.certfile)
        if certificate is not None:
            terms.append(_Term.of_certificate(pair.certfile_option, pair.certfile, certificate))
        if len(pairs) > 1:
            other = kinds.setdefault(_kind_of_key(certificate), pair)
            if other is not pair:
                problem = f"has a key of the same kind as {other.certfile_option}, in whose place it would be served"
                raise CertificateError(pair.certfile_option, pair.certfile, problem)
            pair.load_into(context)
    return terms


def _kind_of_key(certificate: x509.Certificate | None) -> type:
    try:
        return type(None if certificate is None else certificate.public_key())
    except (ValueError, UnsupportedAlgorithm):  # one that nobody here knows
        return type(None)


def _configure_server(context: ssl.SSLContext, options: dict[str, Any]) -> None:
    context.set_ciphers(CIPHERS)
    context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE | ssl.OP_NO_RENEGOTIATION
    if "num_tickets" in options:
        context.num_tickets = options["num_tickets"]
    _configure(context, options)


def _configure(context: ssl.SSLContext, options: dict[str, Any]) -> None:
    """What servers and clients have in common."""
    context.minimum_version = options.get("minimum_version", ssl.TLSVersion.TLSv1_2)
    context.options |= ssl.OP_NO_COMPRESSION
    context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF  # which early versions of Python 3.11 set
    if "ciphers" in options:
        try:
            context.set_ciphers(options["ciphers"])
        except (ssl.SSLError, TypeError):
            raise CertificateError("ciphers", options["ciphers"], "names no cipher that OpenSSL has here") from None
    if "alpn" in options:
        context.set_alpn_protocols(options["alpn"])
    if "ca_certs" in options:
        trust(context, "ca_certs", options["ca_certs"])
    if "crl" in options:
        revoke(context, "crl", options["crl"])
    if "cert_reqs" in options:
        context.check_hostname = context.check_hostname and options["cert_reqs"] != ssl.CERT_NONE
        context.verify_mode = options["cert_reqs"]


def _taken(context: ssl.SSLContext, allow_legacy_tls: bool) -> _Served:
    """A context that was made elsewhere, unless it cannot serve."""
    if context.protocol == ssl.PROTOCOL_TLS_CLIENT:
        raise CertificateError("ssl_options", context, "is the context of a client, not of a server")
    if not allow_legacy_tls and _speaks_legacy_tls(context):
        _raise_to_tls_1_2(context)
    if context.sni_callback is not None:
        return _Served(context, ())
    certificate = _try(context, "ssl_options", context)
    if certificate is None:
        return _Served(context, ())
    return _Served(context, (_Term.of_certificate("ssl_options", context, certificate),))


def _raise_to_tls_1_2(context: ssl.SSLContext) -> None:
    """Where nobody has chosen a version: Debian's Python leaves it to OpenSSL, whose security level refuses old ones.

    :raises CertificateError: somebody has, and chose one before TLS 1.2.
    """
    undecided = context.protocol in WITH_VERSIONS and context.minimum_version == ssl.TLSVersion.MINIMUM_SUPPORTED
    if not undecided or context.maximum_version in TOO_OLD:
        raise CertificateError(
            "ssl_options",
            context,
            "has versions before TLS 1.2: set its minimum_version to ssl.TLSVersion.TLSv1_2 (or allow_legacy_tls=True)",
        )
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    general.info("%s has no minimum_version: it is TLS 1.2 from now on (allow_legacy_tls=True leaves it)", context)


def _speaks_legacy_tls(context: ssl.SSLContext) -> bool:
    if context.protocol not in WITH_VERSIONS:  # they have no minimum_version of their own
        return context.protocol != ssl.PROTOCOL_TLSv1_2
    lowest, highest = context.minimum_version, context.maximum_version
    return any(
        (lowest <= version <= highest or (lowest <= version and highest == ssl.TLSVersion.MAXIMUM_SUPPORTED))
        and not context.options & switched_off
        for version, switched_off in LEGACY
    )


WITH_VERSIONS = (ssl.PROTOCOL_TLS, ssl.PROTOCOL_TLS_SERVER)
TOO_OLD = (ssl.TLSVersion.SSLv3, ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.MINIMUM_SUPPORTED)

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
    keyfiles = [keyfile for pair in pairs for keyfile in pair.get("keyfile", pair["certfile"])]
    for keyfile in dict.fromkeys(keyfiles):
        mode = stat.S_IMODE(Path(keyfile).stat().st_mode)
        if mode & stat.S_IROTH:
            warnings.warn(
                f"keyfile={keyfile!r}: all users can read the private key (mode {mode:04o}): chmod 600", stacklevel=3
            )
