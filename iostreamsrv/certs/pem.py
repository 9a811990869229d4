"""Certificates and private keys in files. OpenSSL reads them; what it refuses is parsed here, to find the reason.

OpenSSL's errors name neither the file nor the fault ("PEM lib"). To parse the files here first would be wrong: it would
refuse files that OpenSSL accepts, and check each key twice, which takes 300 ms where OpenSSL takes 1.
"""

import binascii
import codecs
import contextlib
import re
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import CertificateError

if TYPE_CHECKING:  # to import it takes a fifth of the time in which a program starts: only those with certificates do
    from cryptography import x509

__all__ = ["Pair", "crls_in", "revoke", "trust"]


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, in files.

    :ivar certfile_option: what the user calls the certificate's file: ``certfile``, ``sni['a.org'].certfile[1]``.
    :ivar keyfile_option: what the user calls the key's file.
    """

    certfile: str
    keyfile: str
    password: bytes | None = field(repr=False)
    certfile_option: str
    keyfile_option: str

    @classmethod
    def all_of(cls, options: dict[str, Any], prefix: str = "") -> "list[Pair]":
        """The pairs in checked options, where ``certfile``, ``keyfile`` and ``password`` are lists."""
        certfiles, keyfiles = options.get("certfile"), options.get("keyfile")
        if certfiles is None and keyfiles is not None:
            problem = "is a key without a certificate: certfile is missing"
            raise CertificateError(f"{prefix}keyfile", _one_or_all(keyfiles), problem)
        if certfiles is None:
            raise CertificateError(f"{prefix}certfile", None, "is missing: there is no certificate to serve")
        if keyfiles is not None and len(keyfiles) != len(certfiles):
            problem = f"there must be as many as there are of certfile: {len(certfiles)}"
            raise CertificateError(f"{prefix}keyfile", _one_or_all(keyfiles), problem)
        passwords = _secrets(options.get("password"), len(certfiles), prefix)
        numbers = [""] if len(certfiles) == 1 else [f"[{number}]" for number in range(len(certfiles))]
        key_option = f"{prefix}certfile" if keyfiles is None else f"{prefix}keyfile"
        return [
            cls(certfile, keyfile, password, f"{prefix}certfile{number}", f"{key_option}{number}")
            for certfile, keyfile, password, number in zip(
                certfiles, keyfiles or certfiles, passwords, numbers, strict=True
            )
        ]

    def load_into(self, context: ssl.SSLContext) -> None:
        """Have OpenSSL read the files.

        :raises CertificateError: OpenSSL refuses them, or the chain ends in the middle of a certificate.
        """
        try:  # a function, as without a password OpenSSL would ask the terminal for one
            context.load_cert_chain(self.certfile, self.keyfile, lambda: self.password or b"")
        except (OSError, ValueError) as error:
            raise self._explained(error) from None
        _check_end(self.certfile_option, self.certfile)

    def _explained(self, error: Exception) -> CertificateError:
        """Find out why OpenSSL refused the files."""
        try:
            certificates = _certificates(self.certfile_option, self.certfile)
            key = _private_key(self.keyfile_option, self.keyfile, self.password)
        except CertificateError as found:
            return found
        if _belongs(key, certificates[0]):
            problem = f"OpenSSL does not take it: {getattr(error, 'reason', None) or error}"
            return CertificateError(self.certfile_option, self.certfile, problem)
        later = any(_belongs(key, other) for other in certificates[1:])
        hint = " as its first certificate, only as a later one" if later else ""
        return CertificateError(self.keyfile_option, self.keyfile, f"the key is not what {self.certfile!r} has{hint}")


def trust(context: ssl.SSLContext, option: str, path: str) -> None:
    """Have OpenSSL read a file with certificate authorities, to verify peers.

    :raises CertificateError: OpenSSL refuses the file, or it contains no certificate.
    """
    _load(context, option, path, "certificate", b"CERTIFICATE")
    if not context.cert_store_stats()["x509"]:
        raise CertificateError(option, path, "holds no certificate in PEM")


def revoke(context: ssl.SSLContext, option: str, path: str) -> None:
    """Have OpenSSL read a file with certificate revocation lists (CRLs), and verify whole chains against them.

    :raises CertificateError: OpenSSL refuses the file, or it contains anything but CRLs.
    """
    trusted = context.cert_store_stats()["x509"]
    _load(context, option, path, "CRL", b"X509 CRL")
    if context.cert_store_stats()["x509"] != trusted:
        raise CertificateError(option, path, "holds certificates, too, which would be trusted: they go into ca_certs")
    if not context.cert_store_stats()["crl"]:
        raise CertificateError(option, path, "holds no CRL in PEM")
    context.verify_flags |= ssl.VERIFY_CRL_CHECK_CHAIN


def crls_in(option: str, path: str) -> "list[x509.CertificateRevocationList]":
    """The CRLs in a file that OpenSSL has accepted, except those that cryptography cannot parse."""
    from cryptography import x509

    crls = []
    for block in blocks_in(option, path, b"X509 CRL"):
        with contextlib.suppress(ValueError):
            crls.append(x509.load_pem_x509_crl(block.pem))
    return crls


def _load(context: ssl.SSLContext, option: str, path: str, kind: str, label: bytes) -> None:
    try:
        context.load_verify_locations(path)
    except (OSError, ValueError):
        problem = f"holds a damaged {kind}" if blocks_in(option, path, label) else f"holds no {kind} in PEM"
        raise CertificateError(option, path, problem) from None
    _check_end(option, path)


def _one_or_all(values: list[str]) -> object:
    return values[0] if len(values) == 1 else values


def _secrets(passwords: list[Any] | None, count: int, prefix: str) -> list[bytes | None]:
    """The password of each pair. A single password applies to all of them."""
    if passwords is None:
        return [None] * count
    if len(passwords) not in (1, count):
        problem = f"there must be one, or as many as there are of certfile: {count}"
        raise CertificateError(f"{prefix}password", list, problem)
    secrets = [_secret(password, prefix) for password in passwords]
    return secrets if len(secrets) == count else secrets * count


def _secret(password: Any, prefix: str) -> bytes | None:
    if callable(password):
        try:
            password = password()
        except Exception as error:
            raise CertificateError(f"{prefix}password", type(error), f"the function raised: {error}") from error
        if not isinstance(password, str | bytes | bytearray):
            raise CertificateError(f"{prefix}password", type(password), "the function must return str or bytes")
    return password.encode() if isinstance(password, str) else None if password is None else bytes(password)


# ---- the reasons


def _certificates(option: str, path: str) -> "list[x509.Certificate]":
    from cryptography import x509

    blocks = blocks_in(option, path, b"CERTIFICATE")
    if not blocks:
        raise CertificateError(option, path, "holds no certificate in PEM")
    try:
        return [x509.load_der_x509_certificate(block.der) for block in blocks]
    except ValueError:
        raise CertificateError(option, path, "holds a damaged certificate") from None


def _belongs(key: Any, certificate: "x509.Certificate") -> bool:
    from cryptography.exceptions import UnsupportedAlgorithm

    try:
        return bool(key.public_key() == certificate.public_key())
    except (ValueError, UnsupportedAlgorithm):  # a public key that is damaged, or of an unknown kind
        return False


def _private_key(option: str, path: str, password: bytes | None) -> Any:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization

    blocks = blocks_in(option, path, b"PRIVATE KEY")
    if not blocks:
        missing = ", and there is no keyfile" if "certfile" in option else ""
        raise CertificateError(option, path, f"holds no private key in PEM{missing}")
    encrypted = b"ENCRYPTED" in blocks[0].pem
    if encrypted and password is None:
        raise CertificateError(option, path, "the key is encrypted, and there is no password")
    try:
        return serialization.load_pem_private_key(
            blocks[0].pem, password if encrypted else None, unsafe_skip_rsa_key_validation=True
        )
    except (ValueError, TypeError, UnsupportedAlgorithm):
        problem = "the password does not open the key" if encrypted else "holds a damaged or unknown private key"
        raise CertificateError(option, path, problem) from None


class Block(NamedTuple):
    """A PEM block."""

    label: bytes
    lines: list[bytes]

    @property
    def pem(self) -> bytes:
        """The block in a form that every parser accepts."""
        return b"\n".join([b"-----BEGIN %b-----" % self.label, *self.lines, b"-----END %b-----" % self.label, b""])

    @property
    def der(self) -> bytes:
        """The decoded content. (In a TRUSTED CERTIFICATE more data follows: its trust settings.)"""
        der = binascii.a2b_base64(b"".join(self.lines))
        more = der[1] & 0x7F if der[1:2] >= b"\x80" else 0  # how many bytes the length takes
        return der[: 2 + more + int.from_bytes(der[2 : 2 + more] if more else der[1:2])]


BEGIN = re.compile(rb"-----BEGIN (.+)-----")
STARTS = [b"-----BEGIN %b-----" % label for label in (b"CERTIFICATE", b"TRUSTED CERTIFICATE", b"X509 CRL")]
INCOMPLETE = "is incomplete: it has half of a PEM block"


def blocks_in(option: str, path: str, kind: bytes) -> list[Block]:
    """The PEM blocks of a file whose label ends with ``kind``, found in the same way as OpenSSL finds them.

    :raises CertificateError: reading the file fails, or it contains half of a block.
    """
    lines = _read(option, path).split(b"\n")
    blocks = []
    begun: Block | None = None
    for number, line in enumerate(map(bytes.rstrip, lines), 1):
        if begun is not None:
            if not line.startswith(b"-----END "):
                begun.lines.append(line)
            elif line == b"-----END %b-----" % begun.label:
                blocks.append(begun)
                begun = None
            else:
                break
        elif match := BEGIN.fullmatch(line):
            begun = Block(match[1], [])
        elif line.startswith(b"-----END " if number < len(lines) else b"-"):
            raise CertificateError(option, path, INCOMPLETE)
    if begun is not None:
        raise CertificateError(option, path, INCOMPLETE)
    return [block for block in blocks if block.label.endswith(kind)]


def _check_end(option: str, path: str) -> None:
    """Raise if a file that OpenSSL accepted ends within the first line of a block, which it skips as a comment."""
    if not Path(path).is_file():  # a pipe can be read only once
        return
    last = _read(option, path).rpartition(b"\n")[2]
    if last and any(start.startswith(last) for start in STARTS):
        raise CertificateError(option, path, INCOMPLETE)


def _read(option: str, path: str) -> bytes:
    try:
        return Path(path).read_bytes().removeprefix(codecs.BOM_UTF8)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise CertificateError(option, path, getattr(error, "strerror", None) or str(error)) from None
