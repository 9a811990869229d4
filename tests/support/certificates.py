"""Certificates of a server, and handshakes in memory."""

import datetime
import logging
import ssl
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID

from iostreamsrv.certificates import Certificates, KeyPair, client_context
from iostreamsrv.errors import CertificateError

TRUSTING_ALL = client_context({"cert_reqs": ssl.CERT_NONE})
DAY = datetime.timedelta(days=1)


def certificate_for(key: Any, name: str = "localhost", days: float = 90) -> KeyPair:
    """A certificate that vouches for itself, with a key of any kind."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(subject, subject, key.public_key(), 1, now - DAY, now + days * DAY)
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return KeyPair(builder.sign(key, hashes.SHA256()).public_bytes(pem), private)


def handshake(
    server_context: ssl.SSLContext,
    context: ssl.SSLContext = TRUSTING_ALL,
    name: str | None = "localhost",
    session: ssl.SSLSession | None = None,
) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """Server and client after a handshake in memory, and a message each way."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = server_context.wrap_bio(to_server, to_client, server_side=True)
    client = context.wrap_bio(to_client, to_server, server_hostname=name, session=session)
    for side in (client, server) * 3:
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            pass
    assert talk(server, client)
    return server, client


def talk(server: ssl.SSLObject, client: ssl.SSLObject) -> bool:
    client.write(b"question")
    assert server.read(100) == b"question"
    server.write(b"answer")
    return client.read(100) == b"answer"


def shown(certificates: Certificates, name: str | None = None) -> bytes:
    """The certificate that a client gets who asks for ``name``, in PEM."""
    der = handshake(certificates.context, name=name)[1].getpeercert(binary_form=True)
    assert der is not None
    return ssl.DER_cert_to_PEM_cert(der).encode()


def problem(ssl_options: Any, **more: Any) -> str:
    """What `Certificates` says is wrong."""
    with pytest.raises(CertificateError) as caught:
        Certificates(ssl_options, **more)
    return str(caught.value)


def errors(caplog: pytest.LogCaptureFixture, level: int = logging.ERROR) -> list[str]:
    """What the log has, which is emptied: all of it must be of this level and the "general" log."""
    records = list(caplog.records)
    caplog.clear()
    assert {(record.name, record.levelno) for record in records} <= {("iostreamsrv.general", level)}
    assert not any(record.exc_info for record in records)
    return [record.getMessage() for record in records]
