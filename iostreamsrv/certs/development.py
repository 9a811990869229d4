"""Certificates for development and tests, made without files or tools."""

import datetime
import ipaddress
import os
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ..runtime.clock import real_wall_time
from ..runtime.exports import set_module

__all__ = ["CertificateAuthority", "KeyPair", "self_signed"]

LOCALHOST = ("localhost", "127.0.0.1", "::1")

COMMON_NAME_LENGTH = 64
"""The longest common name that X.509 allows. Clients verify the alternative names only."""

CLOCK_SKEW = datetime.timedelta(minutes=5)
"""How far another machine's clock may be behind, so that a new certificate is valid there as well."""


@set_module("iostreamsrv.certificates")
@dataclass(frozen=True)
class KeyPair:
    """A certificate and its private key. ::

        server = EchoServer(ssl_options=self_signed().write("/tmp/echo"))

    :ivar certificate: the certificate, in PEM.
    :ivar key: the private key, in PEM, not encrypted.
    """

    certificate: bytes
    key: bytes = field(repr=False)

    def write(self, directory: str | os.PathLike[str]) -> dict[str, str]:
        """Write ``cert.pem`` and ``key.pem``, the key for this user alone; what was there is replaced.

        :param directory: where; made if it is not there.
        :returns: ``certfile`` and ``keyfile``, to be used as ``ssl_options``.
        :raises OSError: writing them fails.
        """
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        _replace(folder / "key.pem", self.key, 0o600)
        _replace(folder / "cert.pem", self.certificate, 0o644)
        return {"certfile": str(folder / "cert.pem"), "keyfile": str(folder / "key.pem")}


def _replace(path: Path, data: bytes, mode: int) -> None:
    """Write a file atomically: readers get either the old content or the new one."""
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    new.touch(mode, exist_ok=False)
    new.write_bytes(data)
    new.replace(path)


@set_module("iostreamsrv.certificates")
def self_signed(*names: str, days: float = 365, starts_in: float = 0) -> KeyPair:
    """A self-signed certificate for development. Clients trust it if they have it as ``ca_certs``. ::

        options = self_signed("echo.example", "10.0.0.7").write("/tmp/echo")
        server = EchoServer(ssl_options=options)
        stream = await TCPClient().connect("echo.example", 8888, ssl_options={"ca_certs": options["certfile"]})

    :param names: host names (``*.example.org`` as well) and IP addresses it is for; none: ``localhost``, ``127.0.0.1``
        and ``::1``.
    :param days: how long it is valid.
    :param starts_in: days from now until it is valid; below 0 is in the past: ``days=1, starts_in=-2`` has expired.
    :raises ValueError: a name is invalid in a certificate.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    names = names or LOCALHOST
    builder = _builder(_subject(names[0]), _subject(names[0]), key, key, days, starts_in)
    return _pair(_for(builder, names, ExtendedKeyUsageOID.SERVER_AUTH).sign(key, hashes.SHA256()), key)


@set_module("iostreamsrv.certificates")
class CertificateAuthority:
    """A certificate authority for development. Clients that trust its ``certificate`` trust all that it issues. ::

        authority = CertificateAuthority()
        Path("ca.pem").write_bytes(authority.certificate)
        trust = {"ca_certs": "ca.pem", "cert_reqs": ssl.CERT_REQUIRED}
        server = EchoServer(ssl_options={**authority.issue("localhost").write("server"), **trust})
        client = {**authority.issue("sensor-7", client=True).write("client"), **trust}

    It lives as long as the object: its own key is not kept.

    :param name: its name, which certificates show as their issuer.
    :param days: how long it is valid.

    :ivar certificate: its certificate, in PEM.
    """

    def __init__(self, name: str = "iostreamsrv development CA", *, days: float = 3650) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._subject = _subject(name)
        builder = _builder(self._subject, self._subject, self._key, self._key, days, 0)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(_usage(signs_certificates=True), critical=True)
        self.certificate = _pem(builder.sign(self._key, hashes.SHA256()))

    def issue(self, *names: str, days: float = 365, starts_in: float = 0, client: bool = False) -> KeyPair:
        """A certificate signed by this authority.

        :param names: host names and IP addresses, see `self_signed`; for a client any name or e-mail address.
        :param days: how long it is valid.
        :param starts_in: days from now until it is valid; below 0 is in the past.
        :param client: whether it is a client's certificate instead of a server's.
        :raises ValueError: a name is invalid in a certificate.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        names = names or LOCALHOST
        builder = _builder(_subject(names[0]), self._subject, key, self._key, days, starts_in)
        usage = ExtendedKeyUsageOID.CLIENT_AUTH if client else ExtendedKeyUsageOID.SERVER_AUTH
        return _pair(_for(builder, names, usage).sign(self._key, hashes.SHA256()), key)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    issuers_key: ec.EllipticCurvePrivateKey,
    days: float,
    starts_in: float,
) -> x509.CertificateBuilder:
    """The fields that all certificates have. (Python 3.13 verifies none that lacks the identifiers of both keys.)"""
    start = datetime.datetime.fromtimestamp(real_wall_time(), datetime.UTC) + datetime.timedelta(days=starts_in)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start - CLOCK_SKEW if starts_in == 0 else start)
        .not_valid_after(start + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuers_key.public_key()), critical=False)
    )


def _for(
    builder: x509.CertificateBuilder, names: tuple[str, ...], usage: x509.ObjectIdentifier
) -> x509.CertificateBuilder:
    """Add the extensions of a server's or a client's certificate."""
    return (
        builder.add_extension(x509.SubjectAlternativeName([_general(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:COMMON_NAME_LENGTH])])


def _general(name: str) -> x509.GeneralName:
    """An alternative name: an IP address, an e-mail address or a DNS name."""
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    return x509.RFC822Name(name) if "@" in name else x509.DNSName(name.encode("idna").decode())


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _pair(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> KeyPair:
    return KeyPair(
        _pem(certificate),
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )
