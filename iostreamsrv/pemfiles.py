"""Certificates and private keys in files: read, checked, and found to belong together."""

import re
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from .errors import CertificateError

__all__ = ["Pair", "blocks_in"]


@dataclass(frozen=True)
class Pair:
    """A certificate and its key as files that were read and belong together."""

    certfile: str
    keyfile: str
    password: bytes = field(repr=False)
    certificate: x509.Certificate
    prefix: str

    @classmethod
    def read(cls, options: dict[str, Any], prefix: str = "") -> "Pair":
        certfile, keyfile = options.get("certfile"), options.get("keyfile")
        if certfile is None and keyfile is not None:
            raise CertificateError(f"{prefix}keyfile", keyfile, "is a key without a certificate: certfile is missing")
        if certfile is None:
            raise CertificateError(f"{prefix}certfile", None, "is missing: there is no certificate to be served")
        certificates = _certificates(f"{prefix}certfile", certfile)
        password = _secret(options.get("password"), prefix)
        option = f"{prefix}certfile" if keyfile is None else f"{prefix}keyfile"
        key = _private_key(option, keyfile or certfile, password)
        if not _belongs(key, certificates[0]):
            later = any(_belongs(key, other) for other in certificates[1:])
            hint = " as its first certificate, only as a later one" if later else ""
            raise CertificateError(option, keyfile or certfile, f"the key is not what {certfile!r} has{hint}")
        return cls(certfile, keyfile or certfile, password or b"", certificates[0], prefix)

    def load_into(self, context: ssl.SSLContext) -> None:
        """Have OpenSSL read the files. It compares the two again, so what was written meanwhile cannot get mixed."""
        try:  # a function, as without a password OpenSSL would ask the terminal for one
            context.load_cert_chain(self.certfile, self.keyfile, lambda: self.password)
        except (OSError, ValueError) as error:
            problem = f"OpenSSL does not take it: {getattr(error, 'reason', None) or error}"
            raise CertificateError(f"{self.prefix}certfile", self.certfile, problem) from None


def _secret(password: Any, prefix: str) -> bytes | None:
    if callable(password):
        try:
            password = password()
        except Exception as error:
            raise CertificateError(f"{prefix}password", type(error), f"the function raised: {error}") from error
        if not isinstance(password, str | bytes | bytearray):
            raise CertificateError(f"{prefix}password", type(password), "the function must return str or bytes")
    return password.encode() if isinstance(password, str) else None if password is None else bytes(password)


def _certificates(option: str, path: str) -> list[x509.Certificate]:
    blocks = blocks_in(option, path, b"CERTIFICATE")
    if not blocks:
        raise CertificateError(option, path, "holds no certificate in PEM")
    try:
        return [x509.load_pem_x509_certificate(block) for block in blocks]
    except ValueError:
        raise CertificateError(option, path, "holds a damaged certificate") from None


def _belongs(key: Any, certificate: x509.Certificate) -> bool:
    try:
        return bool(key.public_key() == certificate.public_key())
    except (ValueError, UnsupportedAlgorithm):  # a public key that is damaged, or of a kind that nobody here knows
        return False


def _private_key(option: str, path: str, password: bytes | None) -> Any:
    blocks = blocks_in(option, path, b"PRIVATE KEY")
    if not blocks:
        missing = ", and there is no keyfile" if option.endswith("certfile") else ""
        raise CertificateError(option, path, f"holds no private key in PEM{missing}")
    encrypted = b"ENCRYPTED" in blocks[0]
    if encrypted and password is None:
        raise CertificateError(option, path, "the key is encrypted, and there is no password")
    try:
        return serialization.load_pem_private_key(blocks[0], password if encrypted else None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        problem = "the password does not open the key" if encrypted else "holds a damaged or unknown private key"
        raise CertificateError(option, path, problem) from None


PEM = re.compile(rb"^-----BEGIN ([A-Z0-9 ]+)-----[ \t]*$.*?^-----END \1-----[ \t]*$", re.DOTALL | re.MULTILINE)

HALF = re.compile(rb"^-----(BEGIN|END) |^-[^\n]*\Z", re.MULTILINE)
"""What is left besides blocks where a file ends too early: the line of a block that has no other, or a piece of it."""


def blocks_in(option: str, path: str, kind: bytes) -> list[bytes]:
    """The PEM blocks of a file that are of this kind, which is how their name ends."""
    try:
        data = Path(path).read_bytes().replace(b"\r\n", b"\n")
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise CertificateError(option, path, getattr(error, "strerror", None) or str(error)) from None
    if HALF.search(PEM.sub(b"", data)):
        raise CertificateError(option, path, "is incomplete: it has half of a PEM block")
    return [block[0] for block in PEM.finditer(data) if block[1].endswith(kind)]
