"""Checked options become an `ssl.SSLContext`, for a server or a client, and every certificate is tried."""

import functools
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import CertificateError
from ..runtime.logs import general
from .options import SNI_KEYS
from .pem import Pair, crls_in, revoke, trust
from .validity import Validity

if TYPE_CHECKING:
    from cryptography import x509

CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20:!PSK"
"""For TLS 1.2: forward secrecy and authenticated encryption, nothing else. (TLS 1.3 has no other ciphers.)"""


class Loaded(NamedTuple):
    """What a reload replaces as a whole: the context, and when each of its certificates and CRLs is valid."""

    context: ssl.SSLContext
    validities: tuple[Validity, ...]


class _NamedContext(ssl.SSLContext):
    """The context for one SNI name. It holds the context whose ``sni_callback`` selects it: a connection refers only to
    the context it was switched to, but OpenSSL still calls the ``sni_callback`` of the first one."""

    chosen_by: ssl.SSLContext


def from_dict(options: dict[str, Any]) -> Loaded:
    """A server's context from checked options, with one more context for each SNI name.

    :raises CertificateError: a file or a value is invalid.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    validities = _load_certificates(context, options)
    named = {}
    for name, pair in options["sni"].items():
        named[name] = _NamedContext(ssl.PROTOCOL_TLS_SERVER)
        named[name].chosen_by = context
        validities += _load_certificates(named[name], {**options, **dict.fromkeys(SNI_KEYS), **pair}, f"sni[{name!r}].")
    if named:
        context.sni_callback = _sni_callback(named)
    if "crl" in options:
        validities += [Validity.of_crl("crl", options["crl"], crl) for crl in crls_in("crl", options["crl"])]
    return Loaded(context, tuple(validities))


def _sni_callback(named: dict[str, _NamedContext]) -> Callable[[ssl.SSLObject, str | None, ssl.SSLContext], None]:
    """The ``sni_callback`` for these names. It only selects: nothing would keep a context that it made."""

    def choose(connection: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
        host = (name or "").lower().rstrip(".")
        context = named.get(host) or named.get("*." + host.partition(".")[2])
        if context is not None:
            connection.context = context

    return choose


def _load_certificates(context: ssl.SSLContext, options: dict[str, Any], prefix: str = "") -> list[Validity]:
    """Configure a server's context and load its certificates. Each one is first tried in a separate context, as a
    client is shown only one of them.
    """
    _configure_server(context, options)
    pairs = Pair.all_of(options, prefix)
    kinds: dict[type, Pair] = {}
    validities = []
    for pair in pairs:
        alone = context
        if len(pairs) > 1:
            alone = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            _configure_server(alone, options)
        pair.load_into(alone)
        certificate = _probe_handshake(alone, pair.certfile_option, pair.certfile)
        if certificate is not None:
            validities.append(Validity.of_certificate(pair.certfile_option, pair.certfile, certificate))
        if len(pairs) > 1:
            other = kinds.setdefault(_kind_of_key(certificate), pair)
            if other is not pair:
                problem = f"has a key of the same kind as {other.certfile_option}, in whose place it would be served"
                raise CertificateError(pair.certfile_option, pair.certfile, problem)
            pair.load_into(context)
    return validities


def _kind_of_key(certificate: "x509.Certificate | None") -> type:
    from cryptography.exceptions import UnsupportedAlgorithm

    try:
        return type(None if certificate is None else certificate.public_key())
    except (ValueError, UnsupportedAlgorithm):  # a kind that cryptography does not know
        return type(None)


def _configure_server(context: ssl.SSLContext, options: dict[str, Any]) -> None:
    context.set_ciphers(CIPHERS)
    context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE | ssl.OP_NO_RENEGOTIATION
    if "num_tickets" in options:
        context.num_tickets = options["num_tickets"]
    _configure(context, options)


def _configure(context: ssl.SSLContext, options: dict[str, Any]) -> None:
    """Apply the options that servers and clients share."""
    context.minimum_version = options.get("minimum_version", ssl.TLSVersion.TLSv1_2)
    if options.get("ssl_version") == ssl.PROTOCOL_TLSv1_2:
        context.maximum_version = ssl.TLSVersion.TLSv1_2
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


# ---- clients


def client_from_dict(options: dict[str, Any]) -> ssl.SSLContext:
    """A client's context from checked options.

    :raises CertificateError: a file or a value is invalid.
    """
    context = ssl.create_default_context() if "ca_certs" not in options else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _configure(context, options)
    if "certfile" in options or "keyfile" in options:
        for pair in Pair.all_of(options):
            pair.load_into(context)
    return context


@functools.cache  # reading the system's authorities takes 10 ms and more
def default_client_context() -> ssl.SSLContext:
    """The context of clients that trust the system's authorities."""
    context = ssl.create_default_context()
    _configure(context, {})
    return context


# ---- a context from the user


def from_context(context: ssl.SSLContext, allow_legacy_tls: bool) -> Loaded:
    """Check a context that the user made.

    :raises CertificateError: it cannot serve, or allows TLS before 1.2.
    """
    if context.protocol == ssl.PROTOCOL_TLS_CLIENT:
        raise CertificateError("ssl_options", context, "is the context of a client, not of a server")
    if not allow_legacy_tls and _speaks_legacy_tls(context):
        _raise_to_tls_1_2(context)
    if context.sni_callback is not None:
        return Loaded(context, ())
    certificate = _probe_handshake(context, "ssl_options", context)
    if certificate is None:
        return Loaded(context, ())
    return Loaded(context, (Validity.of_certificate("ssl_options", context, certificate),))


def _raise_to_tls_1_2(context: ssl.SSLContext) -> None:
    """Set ``minimum_version`` to TLS 1.2 if the user has not set it. (Debian's Python leaves it to OpenSSL, whose
    security level refuses older versions.)

    :raises CertificateError: the user has chosen a version before TLS 1.2.
    """
    negotiates = context.protocol in NEGOTIATING_PROTOCOLS
    undecided = negotiates and context.minimum_version == ssl.TLSVersion.MINIMUM_SUPPORTED
    if not undecided or context.maximum_version in LEGACY_MAXIMA:
        raise CertificateError(
            "ssl_options",
            context,
            "has versions before TLS 1.2: set its minimum_version to ssl.TLSVersion.TLSv1_2 (or allow_legacy_tls=True)",
        )
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    general.info("%s has no minimum_version: set to TLS 1.2 (allow_legacy_tls=True leaves it)", context)


def _speaks_legacy_tls(context: ssl.SSLContext) -> bool:
    if context.protocol not in NEGOTIATING_PROTOCOLS:  # those for a single version have no minimum_version
        return context.protocol != ssl.PROTOCOL_TLSv1_2
    lowest, highest = context.minimum_version, context.maximum_version
    return any(
        (lowest <= version <= highest or (lowest <= version and highest == ssl.TLSVersion.MAXIMUM_SUPPORTED))
        and not context.options & switched_off
        for version, switched_off in LEGACY
    )


NEGOTIATING_PROTOCOLS = (ssl.PROTOCOL_TLS, ssl.PROTOCOL_TLS_SERVER)
"""Those with a range of versions; the others are for one version each."""

LEGACY_MAXIMA = (ssl.TLSVersion.SSLv3, ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.MINIMUM_SUPPORTED)

LEGACY = (
    (ssl.TLSVersion.SSLv3, ssl.OP_NO_SSLv3),
    (ssl.TLSVersion.TLSv1, ssl.OP_NO_TLSv1),
    (ssl.TLSVersion.TLSv1_1, ssl.OP_NO_TLSv1_1),
)
"""Versions before TLS 1.2, and the option that switches each off."""


# ---- the handshake that tries a certificate


def _probe_handshake(context: ssl.SSLContext, option: str, value: object) -> "x509.Certificate | None":
    """Do a TLS handshake with ``context`` in memory.

    :returns: the certificate that the client was shown; None if the server asks for the client's certificate first.
    :raises CertificateError: the context has no certificate that it could show.
    """
    from cryptography import x509

    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = context.wrap_bio(to_server, to_client, server_side=True)
    client = _permissive_context().wrap_bio(to_client, to_server)
    for side in (client, server) * 4:  # TLS 1.2 takes two rounds, a HelloRetryRequest one more
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            if side is server and error.reason in NO_CERTIFICATE_REASONS:
                raise CertificateError(
                    option, value, f"no certificate can be served from it ({error.reason})"
                ) from None
            break
    try:
        return x509.load_der_x509_certificate(client.getpeercert(binary_form=True) or b"")
    except ValueError:  # the handshake did not finish, or cryptography cannot read the certificate
        return None


NO_CERTIFICATE_REASONS = {"NO_SHARED_CIPHER", "NO_SUITABLE_SIGNATURE_ALGORITHM", "UNSUPPORTED_PROTOCOL"}
"""OpenSSL's reasons, by version, for a server without a usable certificate. The client in memory supports all else.

Other errors concern real clients: the server may require a client's certificate, which this client lacks.
"""


@functools.cache
def _permissive_context() -> ssl.SSLContext:
    """The context of a client that accepts any certificate and version."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    context.set_ciphers("ALL:@SECLEVEL=0")
    return context
