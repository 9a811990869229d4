"""When certificates and CRLs are valid, and when to warn that they expire."""

import datetime
import math
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from cryptography import x509

DAY = 86400.0
"""In seconds."""

EXPIRY_NOTICE = 14 * DAY
"""Warn this many seconds before a certificate expires. Renewal at two thirds of 90 days would be 16 days late then."""

CERTIFICATE = "certificate"
CRL = "CRL"

NOTICE = {CERTIFICATE: EXPIRY_NOTICE, CRL: 0.0}
"""Seconds before the expiry to warn. (CRLs are valid for days only, so they are warned of when they have expired.)"""

CONSEQUENCE = {CERTIFICATE: "it is served all the same", CRL: "clients of its authority are refused"}
"""What it means for clients if it is not valid now."""


class Validity(NamedTuple):
    """When a certificate or a CRL is valid, and which option named it.

    :ivar since: seconds of `time.time`; likewise ``until``, which is ``math.inf`` for a CRL without an end.
    :ivar what: :data:`CERTIFICATE` or :data:`CRL`.
    """

    option: str
    value: object
    since: float
    until: float
    what: str

    @classmethod
    def of_certificate(cls, option: str, value: object, certificate: "x509.Certificate") -> "Validity":
        since, until = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        return cls(option, value, since.timestamp(), until.timestamp(), CERTIFICATE)

    @classmethod
    def of_crl(cls, option: str, value: object, crl: "x509.CertificateRevocationList") -> "Validity":
        until = math.inf if crl.next_update_utc is None else crl.next_update_utc.timestamp()
        return cls(option, value, crl.last_update_utc.timestamp(), until, CRL)

    @property
    def place(self) -> str:
        """The option with its value, for the log."""
        return f"{self.option}={self.value!r}"

    def __str__(self) -> str:
        return self.place if self.until == math.inf else f"{self.place} until {show_date(self.until)}"

    def problem(self, now: float) -> str | None:
        """Why it is not valid at ``now``; None if it is."""
        if now > self.until:
            return f"the {self.what} expired on {show_date(self.until)}"
        return f"the {self.what} is not valid before {show_date(self.since)}" if now < self.since else None


def show_date(seconds: float) -> str:
    """A time, in seconds of `time.time`, for people."""
    return f"{datetime.datetime.fromtimestamp(seconds, datetime.UTC):%Y-%m-%d %H:%M} UTC"
