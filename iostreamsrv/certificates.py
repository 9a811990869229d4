"""stub"""

import ssl
from typing import Any


class Certificates:
    def __init__(self, ssl_options: Any, *, strict_validity: bool = False, allow_legacy_tls: bool = False) -> None:
        if isinstance(ssl_options, ssl.SSLContext):
            self.context = ssl_options
        else:
            self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            self.context.load_cert_chain(ssl_options["certfile"], ssl_options.get("keyfile"))

    def reload(self) -> bool:
        return True

    def warn_of_expiry(self, now: float) -> None: ...


def client_context(ssl_options: Any) -> ssl.SSLContext:
    if isinstance(ssl_options, ssl.SSLContext):
        return ssl_options
    c = ssl.create_default_context()
    if (ssl_options or {}).get("cert_reqs") == ssl.CERT_NONE:
        c.check_hostname = False
        c.verify_mode = ssl.CERT_NONE
    return c
