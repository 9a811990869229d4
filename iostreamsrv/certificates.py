"""TLS certificates: ``ssl_options`` become a checked context, which can be reloaded while clients are served.

A server has `Certificates`; `client_context` is for clients. For development, certificates can be made without files or
tools: `self_signed` for one server, `CertificateAuthority` for several servers and for clients. ::

    options = self_signed().write("/tmp/echo")
    certificates = Certificates(options)
    certificates.context  # an ssl.SSLContext, for the next connection
"""

from .certs.certificates import Certificates, Reload, client_context
from .certs.contexts import CIPHERS
from .certs.development import CertificateAuthority, KeyPair, self_signed
from .errors import CertificateError

__all__ = [
    "CIPHERS",
    "CertificateAuthority",
    "CertificateError",
    "Certificates",
    "KeyPair",
    "Reload",
    "client_context",
    "self_signed",
]
