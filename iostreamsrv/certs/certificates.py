"""The certificates of a server: loaded, checked, reloaded, and watched for expiry."""

import logging
import ssl
import stat
import warnings
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import CertificateError
from ..options import check_flag
from ..runtime.clock import current_wall_time
from ..runtime.exports import set_module
from ..runtime.logs import general
from .contexts import Loaded, client_from_dict, default_client_context, from_context, from_dict
from .options import SSLOptions, client_options, files_of, server_options
from .validity import CERTIFICATE, CONSEQUENCE, DAY, NOTICE, show_date


@set_module("iostreamsrv.certificates")
class Certificates:
    """A server's ``ssl_options``, loaded and checked: when the object is made, and at each :meth:`reload`. ::

        certificates = Certificates({
            "certfile": "/etc/echo/cert.pem",
            "keyfile": "/etc/echo/key.pem",
            "sni": {"*.example.org": {"certfile": "/etc/echo/org.pem", "keyfile": "/etc/echo/org.key"}},
        })

    Keys of the dict:

    - ``certfile`` (or ``cert_file``): the certificate and its chain, in PEM, the server's certificate first.
    - ``keyfile`` (or ``key_file``): its private key; not needed if ``certfile`` holds that, too.
    - ``password``: the password of an encrypted key: str, bytes, or a function without arguments that returns it.
    - All three may be lists, for key pairs of different kinds: ``"certfile": ["ec.pem", "rsa.pem"], "keyfile":
      ["ec.key", "rsa.key"]``. Each client is shown one that it can verify. A single ``password`` applies to all keys.
    - ``ca_certs``: a file with the authorities that sign the certificates of clients.
    - ``crl``: a file with certificate revocation lists, one from each of these authorities. A client is refused if its
      authority's list is missing or expired.
    - ``cert_reqs``: `ssl.CERT_REQUIRED` refuses clients without a certificate, `ssl.CERT_OPTIONAL` only those with an
      invalid one; both need ``ca_certs``. `ssl.CERT_NONE`, the default, requests none.
    - ``ciphers``: for TLS 1.2, in OpenSSL's notation; the default is :data:`CIPHERS`.
    - ``alpn``: protocols in the server's order of preference: ``["h2", "http/1.1"]``.
    - ``minimum_version``: `ssl.TLSVersion.TLSv1_2`, the default, or `ssl.TLSVersion.TLSv1_3`.
    - ``num_tickets``: number of TLS 1.3 session tickets sent to each client, 0 to 255; OpenSSL's default is 2.
    - ``ssl_version``: for Tornado's sake; `ssl.PROTOCOL_TLSv1_2` switches 1.3 off, `ssl.PROTOCOL_TLS`,
      `ssl.PROTOCOL_TLS_SERVER` and `ssl.PROTOCOL_TLS_CLIENT` do nothing.
    - ``sni``: certificates by the host name that a client asks for, each a dict of ``certfile``, ``keyfile`` and
      ``password``. An exact name takes precedence over ``*.name``, where ``*`` matches one label. For any other name
      the certificate above is used.

    Contexts made from a dict allow TLS 1.2 and 1.3 and session tickets, but no compression or renegotiation.

    OpenSSL reads the files. Each certificate is tried in a handshake in memory.

    An `ssl.SSLContext` is tried as well, unless it has an ``sni_callback``, which may select the certificate. It is
    used unchanged, with one exception: if its ``minimum_version`` is `ssl.TLSVersion.MINIMUM_SUPPORTED` (some systems'
    `ssl.create_default_context` leaves it so), that is set to TLS 1.2, with a line in the log. A context that
    explicitly allows older versions is refused.

    A certificate that has expired or is not valid yet is logged as an error, and is served all the same. A key file
    that all users can read causes a `UserWarning`.

    :param ssl_options: such a dict, or an `ssl.SSLContext`.
    :param strict_validity: raise for a certificate that has expired or is not valid yet; False.
    :param allow_legacy_tls: accept an `ssl.SSLContext` that allows versions before TLS 1.2; False.
    :raises CertificateError: a file is missing, unreadable or of the wrong kind, a key does not match its certificate,
        or an option is unknown or invalid.
    """

    def __init__(
        self, ssl_options: SSLOptions, *, strict_validity: bool = False, allow_legacy_tls: bool = False
    ) -> None:
        self._strict_validity = check_flag("strict_validity", strict_validity)
        self._allow_legacy_tls = check_flag("allow_legacy_tls", allow_legacy_tls)
        self._ssl_options = ssl_options if isinstance(ssl_options, ssl.SSLContext) else server_options(ssl_options)
        self._warned: float | None = None
        self._prepared: Loaded | CertificateError | None = None
        self._served = self._load()
        if isinstance(self._ssl_options, dict):
            _warn_of_readable_keys(self._ssl_options)

    @property
    def context(self) -> ssl.SSLContext:
        """The context for new connections. Existing connections keep theirs."""
        return self._served.context

    @property
    def expires_at(self) -> float | None:
        """When the first of the certificates expires, in seconds of `time.time`; None if that is unknown."""
        return min(
            (validity.until for validity in self._served.validities if validity.what == CERTIFICATE), default=None
        )

    @property
    def files(self) -> list[str]:
        """The paths of all files that were read, and that :meth:`reload` reads; none for an `ssl.SSLContext`."""
        return [] if isinstance(self._ssl_options, ssl.SSLContext) else list(files_of(self._ssl_options))

    def reload(self) -> bool:
        """Read all files again, and use them for new connections. ::

            if not certificates.reload():
                ...  # the log says why

        The new context is built and checked first. If that fails (a file is half written, or a key does not match its
        certificate yet), the old context stays in use, and an error is logged; nothing is raised. Existing connections
        are not affected.

        An `ssl.SSLContext` is not reloaded, because its files are unknown: the result is False, with a warning.

        :returns: whether the files were read and are in use.
        """
        outcome = self.renew()
        general.log(outcome.level, "%s", outcome.text)
        return outcome.done

    def prepare(self) -> None:
        """Read all files now, for the next :meth:`renew` or :meth:`reload`, which then does not block. To be called in
        another thread than the loop's.
        """
        if not isinstance(self._ssl_options, ssl.SSLContext):
            self._prepared = self._read()

    def renew(self) -> "Reload":
        """:meth:`reload` without the line in the log: the caller writes it, from the outcome."""
        if isinstance(self._ssl_options, ssl.SSLContext):
            text = f"Certificates not reloaded: the files of {self._ssl_options} are not known (a dict names them)"
            return Reload(logging.WARNING, text)
        outcome, self._prepared = self._prepared or self._read(), None
        if isinstance(outcome, CertificateError):
            text = f"Certificates not reloaded, the old ones stay in force: {outcome}"
            return Reload(logging.ERROR, text, outcome)
        self._served = outcome
        return Reload(logging.INFO, f"Certificates reloaded: {', '.join(map(str, outcome.validities))}")

    def warn_of_expiry(self, now: float | None = None) -> None:
        """Log a warning for each certificate that expires within 14 days, and for each expired CRL. It may be called
        often: it warns once a day.

        :param now: the time, in seconds of `time.time`; None for the current time.
        """
        now = current_wall_time() if now is None else now
        if self._warned is not None and now - self._warned < DAY:
            return
        for validity in dict.fromkeys(self._served.validities):
            if validity.until - now <= NOTICE[validity.what]:
                self._warned = now
                general.warning(
                    "%s: %s", validity.place, validity.problem(now) or f"expires on {show_date(validity.until)}"
                )

    def _read(self) -> "Loaded | CertificateError":
        try:
            return self._load()
        except CertificateError as error:
            return error.with_traceback(None)

    def _load(self) -> "Loaded":
        if isinstance(self._ssl_options, ssl.SSLContext):
            served = from_context(self._ssl_options, self._allow_legacy_tls)
        else:
            served = from_dict(self._ssl_options)
        now = current_wall_time()
        for validity in dict.fromkeys(served.validities):
            if problem := validity.problem(now):
                if self._strict_validity:
                    raise CertificateError(validity.option, validity.value, problem)
                general.error("%s: %s; %s", validity.place, problem, CONSEQUENCE[validity.what])
        return served


@set_module("iostreamsrv.certificates")
class Reload(NamedTuple):
    """The outcome of a reload.

    :ivar level: `logging.INFO` if the files are in use, else `logging.WARNING` or `logging.ERROR`.
    :ivar text: the line for the log.
    :ivar error: what was wrong with the files; None if nothing was.
    """

    level: int
    text: str
    error: CertificateError | None = None

    @property
    def done(self) -> bool:
        """Whether the files are in use."""
        return self.level == logging.INFO


@set_module("iostreamsrv.certificates")
def client_context(ssl_options: SSLOptions | None = None) -> ssl.SSLContext:
    """A client's context, which by default verifies the server's certificate and its host name. ::

        context = client_context({"ca_certs": "ca.pem", "alpn": ["echo/1"]})

    :param ssl_options: None: trust the system's authorities. An `ssl.SSLContext`: use that. A dict: ``ca_certs``, a
        file with the authorities to trust instead; ``crl``, a file with their revocation lists; ``cert_reqs``, where
        `ssl.CERT_NONE` verifies neither certificate nor name; ``certfile``, ``keyfile`` and ``password`` for a server
        that requests a certificate; ``ciphers``, ``alpn`` and ``minimum_version``. Each call makes a new context and
        reads the files. (`TCPClient` and `IOStream.start_tls` cache the context of a dict.)
    :returns: the context; for None always the same one, which must not be changed.
    :raises CertificateError: see `Certificates`.
    """
    if ssl_options is None:
        return default_client_context()
    if isinstance(ssl_options, ssl.SSLContext):
        if ssl_options.protocol == ssl.PROTOCOL_TLS_SERVER:
            raise CertificateError("ssl_options", ssl_options, "is the context of a server, not of a client")
        return ssl_options
    return client_from_dict(client_options(ssl_options))


def _warn_of_readable_keys(options: dict[str, Any]) -> None:
    pairs = [options, *options["sni"].values()]
    keyfiles = [keyfile for pair in pairs for keyfile in pair.get("keyfile", pair["certfile"])]
    for keyfile in dict.fromkeys(keyfiles):
        mode = stat.S_IMODE(Path(keyfile).stat().st_mode)
        if mode & stat.S_IROTH:
            warnings.warn(
                f"keyfile={keyfile!r}: all users can read the private key (mode {mode:04o}): chmod 600", stacklevel=3
            )
