"""Certificates: what is wrong with them is found when they are loaded, and what is right is served and replaced."""

import contextlib
import datetime
import gc
import itertools
import logging
import os
import random
import ssl
import stat
import time
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ed25519, rsa
from cryptography.x509.oid import NameOID

from iostreamsrv.certificates import CertificateAuthority, Certificates, KeyPair, client_context, self_signed
from iostreamsrv.errors import CertificateError, OptionError
from tests.support.certificates import TRUSTING_ALL, errors, handshake, problem, shown, talk
from tests.support.tiers import EVERY_CASE

DAY = 86400.0


AUTHORITY = CertificateAuthority()


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Any]:
    """A certificate and its key."""
    return dict(self_signed().write(tmp_path / "files"))


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    path = tmp_path / "ca.pem"
    path.write_bytes(AUTHORITY.certificate)
    return path


def certificate_of(options: dict[str, Any]) -> bytes:
    return Path(options["certfile"]).read_bytes()


def in_pem(key: Any) -> bytes:
    pem: bytes = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return pem


def encrypted(pair: KeyPair, password: bytes, form: str = "PKCS8") -> bytes:
    return serialization.load_pem_private_key(pair.key, None).private_bytes(
        serialization.Encoding.PEM,
        getattr(serialization.PrivateFormat, form),
        serialization.BestAvailableEncryption(password),
    )


# ---- what is served


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "::1"])
def test_a_certificate_for_development_is_served_and_verified(files: dict[str, Any], name: str) -> None:
    _, client = handshake(Certificates(files).context, client_context({"ca_certs": files["certfile"]}), name)
    assert client.version() == "TLSv1.3"
    assert client.compression() is None


def test_names_of_tornado_and_of_turbo_are_taken(files: dict[str, Any]) -> None:
    certificates = Certificates(
        {
            "cert_file": Path(files["certfile"]),
            "key_file": os.fsencode(files["keyfile"]),
            "ssl_version": ssl.PROTOCOL_TLS_SERVER,
            "ca_certs": None,
        }
    )
    assert shown(certificates) == certificate_of(files)


@pytest.mark.parametrize("version, agreed", [(ssl.PROTOCOL_TLSv1_2, "TLSv1.2"), (ssl.PROTOCOL_TLS, "TLSv1.3")])
def test_the_protocol_of_a_single_version_rules_out_later_ones(
    files: dict[str, Any], version: Any, agreed: str
) -> None:
    client = client_context({"ca_certs": files["certfile"], "ssl_version": version})
    _, ours = handshake(Certificates(files).context, client)
    assert ours.version() == agreed
    server = Certificates({**files, "ssl_version": version}).context
    _, ours = handshake(server, client_context({"ca_certs": files["certfile"]}))
    assert ours.version() == agreed


def test_one_file_may_hold_the_certificate_and_the_key(tmp_path: Path) -> None:
    pair = self_signed()
    for name, content in {"a.pem": pair.key + pair.certificate, "b.pem": pair.certificate + pair.key}.items():
        path = tmp_path / name
        path.touch(0o600)
        path.write_bytes(b"a comment\r\n-- and one more\r\n" + content.replace(b"\n", b"\r\n"))
        assert shown(Certificates({"certfile": path})) == pair.certificate


def test_the_chain_is_served(tmp_path: Path, authority: Path) -> None:
    options = AUTHORITY.issue("localhost").write(tmp_path)
    Path(options["certfile"]).write_bytes(certificate_of(options) + AUTHORITY.certificate)
    handshake(Certificates(options).context, client_context({"ca_certs": authority}))


@pytest.mark.parametrize("password", ["sesame", b"sesame", bytearray(b"sesame"), lambda: "sesame"])
@pytest.mark.parametrize("form", ["PKCS8", "TraditionalOpenSSL"])
def test_an_encrypted_key_is_opened_by_its_password(tmp_path: Path, password: Any, form: str) -> None:
    pair = self_signed()
    options = pair.write(tmp_path)
    Path(options["keyfile"]).write_bytes(encrypted(pair, b"sesame", form))
    assert shown(Certificates({**options, "password": password})) == pair.certificate


def test_a_password_without_need_does_no_harm(files: dict[str, Any]) -> None:
    assert shown(Certificates({**files, "password": "sesame"})) == certificate_of(files)


def test_the_defaults_are_tls_1_2_with_forward_secrecy_and_authenticated_encryption(files: dict[str, Any]) -> None:
    context = Certificates(files).context
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.options & ssl.OP_NO_COMPRESSION
    assert context.options & ssl.OP_NO_RENEGOTIATION
    assert context.options & ssl.OP_CIPHER_SERVER_PREFERENCE
    assert not context.options & ssl.OP_NO_TICKET
    ciphers = context.get_ciphers()
    assert len(ciphers) > 3
    assert all(cipher["aead"] and cipher["strength_bits"] >= 128 for cipher in ciphers)
    old = [cipher["name"] for cipher in ciphers if cipher["protocol"] != "TLSv1.3"]
    assert old
    assert all(name.startswith(("ECDHE-ECDSA-", "ECDHE-RSA-")) for name in old)


def test_an_end_that_was_not_announced_is_told_from_one_that_was(files: dict[str, Any]) -> None:
    context, client_side = Certificates(files).context, client_context({"cert_reqs": ssl.CERT_NONE})
    for announced in (True, False):
        to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        server = context.wrap_bio(to_server, to_client, server_side=True)
        client = client_side.wrap_bio(to_client, to_server)
        for side in (client, server, client, server):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
        if announced:
            with contextlib.suppress(ssl.SSLWantReadError):
                client.unwrap()
        to_server.write_eof()
        with contextlib.nullcontext() if announced else pytest.raises(ssl.SSLError, match=r"(?i)\beof\b"):
            assert server.read(1) == b""


@pytest.mark.parametrize("weak", ["ECDHE-ECDSA-AES128-SHA", "DHE-RSA-AES128-GCM-SHA256", "AES128-GCM-SHA256"])
def test_a_weak_cipher_is_refused_unless_asked_for(files: dict[str, Any], weak: str) -> None:
    client = client_context({"ciphers": weak, "cert_reqs": ssl.CERT_NONE})
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError, match="NO_SHARED_CIPHER"):
        handshake(Certificates(files).context, client)
    if "ECDSA" in weak:  # the only one of them that fits this certificate
        server, _ = handshake(Certificates({**files, "ciphers": weak}).context, client)
        assert server.cipher()[0] == weak  # type: ignore[index]


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("mutual", [False, True], ids=["plain", "mTLS"])
def test_a_session_is_resumed(tmp_path: Path, authority: Path, version: ssl.TLSVersion, mutual: bool) -> None:
    pair = AUTHORITY.issue("localhost", "other.example").write(tmp_path)
    options: dict[str, Any] = {**pair, "sni": {"other.example": pair}}
    client = client_context({**AUTHORITY.issue(client=True).write(tmp_path / "client"), "ca_certs": authority})
    client.minimum_version = client.maximum_version = version
    if mutual:
        options |= {"ca_certs": authority, "cert_reqs": ssl.CERT_REQUIRED}
    certificates = Certificates(options)
    for name in ("localhost", "other.example"):
        first = handshake(certificates.context, client, name)[1]
        assert not first.session_reused
        server, second = handshake(certificates.context, client, name, first.session)
        assert second.session_reused
        assert bool(server.getpeercert()) == mutual


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_session_from_before_a_reload_is_not_resumed_and_does_no_harm(
    tmp_path: Path, authority: Path, version: ssl.TLSVersion
) -> None:
    """A reload makes new keys for tickets as well, and verifies clients anew."""
    pair = AUTHORITY.issue("localhost").write(tmp_path)
    client = client_context({"ca_certs": authority})
    client.minimum_version = client.maximum_version = version
    certificates = Certificates(pair)
    first = handshake(certificates.context, client, "localhost")[1]
    AUTHORITY.issue("localhost").write(tmp_path)
    assert certificates.reload()
    second = handshake(certificates.context, client, "localhost", first.session)[1]
    assert not second.session_reused
    assert first.getpeercert(True) != second.getpeercert(True)
    assert handshake(certificates.context, client, "localhost", second.session)[1].session_reused


def test_the_protocol_is_the_first_of_the_servers_that_the_client_has(files: dict[str, Any]) -> None:
    options = {**files, "alpn": ["h2", "echo/1"]}
    certificates = Certificates({**options, "sni": {"other.example": files}})
    for asked, chosen in [(["echo/1", "h2"], "h2"), (["echo/1"], "echo/1"), (["smtp"], None)]:
        client = client_context({"cert_reqs": ssl.CERT_NONE, "alpn": asked})
        for name in ("localhost", "other.example"):
            server, _ = handshake(certificates.context, client, name)
            assert server.selected_alpn_protocol() == chosen


# ---- clients that must show a certificate


@pytest.fixture
def mutual(tmp_path: Path, authority: Path) -> dict[str, Any]:
    return {**AUTHORITY.issue().write(tmp_path / "server"), "ca_certs": authority, "cert_reqs": ssl.CERT_REQUIRED}


def client_of(authority: Path, issuer: CertificateAuthority, folder: Path, **more: Any) -> ssl.SSLContext:
    pair = issuer.issue("sensor-7", "7@sensors.example", client=True, **more)
    return client_context({**pair.write(folder), "ca_certs": authority})


def test_a_required_certificate_of_a_client_is_verified(
    tmp_path: Path, mutual: dict[str, Any], authority: Path
) -> None:
    server, _ = handshake(Certificates(mutual).context, client_of(authority, AUTHORITY, tmp_path / "client"))
    got = server.getpeercert()
    assert got is not None
    assert got["subject"] == ((("commonName", "sensor-7"),),)
    assert got["subjectAltName"] == (("DNS", "sensor-7"), ("email", "7@sensors.example"))


@pytest.mark.parametrize("name", ["localhost", "other.example"])
def test_a_client_with_a_wrong_certificate_or_none_is_refused(
    tmp_path: Path, mutual: dict[str, Any], authority: Path, name: str
) -> None:
    pair = AUTHORITY.issue("other.example").write(tmp_path / "other")
    required = Certificates({**mutual, "sni": {"other.example": pair}})
    optional = Certificates({**mutual, "cert_reqs": ssl.CERT_OPTIONAL, "sni": {"other.example": pair}})
    nobody = client_context({"ca_certs": authority})
    stranger = client_of(authority, CertificateAuthority(), tmp_path / "stranger")
    late = client_of(authority, AUTHORITY, tmp_path / "late", days=1, starts_in=-2)
    a_server = client_context({**AUTHORITY.issue().write(tmp_path / "a"), "ca_certs": authority})
    for client in (nobody, stranger, late, a_server):
        with pytest.raises(ssl.SSLError, match=r"PEER_DID_NOT_RETURN_A_CERTIFICATE|CERTIFICATE_VERIFY_FAILED"):
            handshake(required.context, client, name)
    for client in (stranger, late, a_server):
        with pytest.raises(ssl.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
            handshake(optional.context, client, name)
    server, _ = handshake(optional.context, nobody, name)
    assert not server.getpeercert()


# ---- names


def test_an_exact_name_goes_before_a_wildcard_and_both_before_the_default(
    files: dict[str, Any], tmp_path: Path
) -> None:
    names = ["Example.ORG", "*.example.org", "a.example.org", "bücher.example", "*.bücher.example"]
    pairs = {name: AUTHORITY.issue(name.lower()).write(tmp_path / str(n)) for n, name in enumerate(names)}
    certificates = Certificates({**files, "sni": pairs})
    served = {
        "example.org": "Example.ORG",
        "EXAMPLE.org": "Example.ORG",
        "a.example.org": "a.example.org",
        "b.example.org": "*.example.org",
        "B.Example.Org": "*.example.org",
        "xn--bcher-kva.example": "bücher.example",
        "a.xn--bcher-kva.example": "*.bücher.example",
    }
    for asked, name in served.items():
        assert shown(certificates, asked) == certificate_of(pairs[name]), asked
    for unknown in ("a.b.example.org", "org", "xexample.org", "localhost", "127.0.0.1", None):
        assert shown(certificates, unknown) == certificate_of(files), unknown


def test_a_connection_keeps_its_contexts_alive_and_nothing_else_does(files: dict[str, Any]) -> None:
    certificates = Certificates({**files, "sni": {"example.org": files}})
    server, client = handshake(certificates.context, name="example.org")
    first = weakref.ref(certificates.context)
    named = weakref.ref(server.context)
    assert named() is not first()
    assert certificates.reload()
    gc.collect()
    assert first() is not None, "OpenSSL still knows it as the one to ask for names"
    assert talk(server, client)
    del server, client
    gc.collect()
    assert first() is None
    assert named() is None


def test_the_handshake_under_way_survives_a_reload(files: dict[str, Any]) -> None:
    certificates = Certificates({**files, "sni": {"example.org": files}})
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = certificates.context.wrap_bio(to_server, to_client, server_side=True)
    client = TRUSTING_ALL.wrap_bio(to_client, to_server, server_hostname="example.org")
    for side in (client, server, client, server):
        assert certificates.reload()
        gc.collect()
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            pass
    assert talk(server, client)


@pytest.mark.parametrize("name", ["", "*", "*.*.example", "a.*.example", "a..b", "a/b", ".example", "x" * 70, 3, None])
def test_a_name_that_no_client_could_ask_for_raises(files: dict[str, Any], name: Any) -> None:
    assert problem({**files, "sni": {name: files}}) == f"sni={name!r}: must be the name of a host, or *. and a domain"


# ---- what is wrong


def test_an_error_is_one_of_options_and_of_keys_and_reads_well() -> None:
    with pytest.raises(CertificateError) as caught:
        Certificates({"certfile": "/no/such.pem", "keyfile": "/no/such.key"})
    assert isinstance(caught.value, OptionError)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, KeyError)
    assert str(caught.value) == "certfile='/no/such.pem': No such file or directory"
    assert (caught.value.option, caught.value.value) == ("certfile", "/no/such.pem")


@pytest.mark.parametrize("ssl_options", [None, True, 1, "cert.pem", ["certfile"]])
def test_what_is_neither_a_dict_nor_a_context_raises(ssl_options: Any) -> None:
    assert problem(ssl_options) == f"ssl_options={ssl_options!r}: must be a dict or an ssl.SSLContext"


@pytest.mark.parametrize(
    "more, said",
    [
        ({"certfile": None}, "keyfile='{keyfile}': is a key without a certificate: certfile is missing"),
        ({"certfile": None, "keyfile": None}, "certfile=None: is missing: there is no certificate to serve"),
        ({"keyfile": None}, "certfile='{certfile}': holds no private key in PEM, and there is no keyfile"),
        ({"certfile": "{keyfile}"}, "certfile='{keyfile}': holds no certificate in PEM"),
        ({"keyfile": "{certfile}"}, "keyfile='{certfile}': holds no private key in PEM"),
        ({"certfile": "{folder}"}, "certfile='{folder}': Is a directory"),
        ({"keyfile": "{folder}"}, "keyfile='{folder}': Is a directory"),
        ({"keyfile": "/no/such.key"}, "keyfile='/no/such.key': No such file or directory"),
        ({"certfile": "a\0b"}, "certfile='a\\x00b': embedded null byte"),
        ({"certfile": 3}, "certfile=3: must be the path of a file"),
        ({"keyfile": True}, "keyfile=True: must be the path of a file"),
        ({"ca_certs": "/no/such.pem"}, "ca_certs='/no/such.pem': No such file or directory"),
        ({"ca_certs": "{keyfile}"}, "ca_certs='{keyfile}': holds no certificate in PEM"),
        ({"cert_reqs": ssl.CERT_REQUIRED}, "cert_reqs=<VerifyMode.CERT_REQUIRED: 2>: needs ca_certs: "),
        ({"cert_reqs": ssl.CERT_OPTIONAL}, "cert_reqs=<VerifyMode.CERT_OPTIONAL: 1>: needs ca_certs: "),
        ({"cert_reqs": True}, "cert_reqs=True: must be ssl.CERT_NONE, ssl.CERT_OPTIONAL or ssl.CERT_REQUIRED"),
        ({"cert_reqs": "required"}, "cert_reqs='required': must be ssl.CERT_NONE, "),
        ({"cert_reqs": 7}, "cert_reqs=7: must be ssl.CERT_NONE, "),
        ({"ciphers": "NONSENSE"}, "ciphers='NONSENSE': names no cipher that OpenSSL has here"),
        ({"ciphers": ["AES"]}, "ciphers=['AES']: names no cipher that OpenSSL has here"),
        ({"alpn": "h2"}, "alpn='h2': must be a list of names, "),
        ({"alpn": []}, "alpn=[]: must be a list of names, "),
        ({"alpn": [""]}, "alpn=['']: must be a list of names, "),
        ({"alpn": ["h2", 3]}, "alpn=['h2', 3]: must be a list of names, "),
        ({"alpn": ["é"]}, "alpn=['é']: must be a list of names, "),
        ({"alpn": ["x" * 256]}, "alpn=['xxx"),
        ({"ssl_version": ssl.PROTOCOL_TLSv1_1}, "ssl_version=<_SSLMethod.PROTOCOL_TLSv1_1: 4>: cannot be set here"),
        ({"sni": ["example.org"]}, "sni=['example.org']: must be a dict: "),
        ({"sni": {"a.org": "x.pem"}}, "sni['a.org']='x.pem': must be a dict"),
        ({"sni": {"a.org": {}}}, "sni['a.org'].certfile=None: is missing: "),
        ({"sni": {"a.org": {"certfile": "/no"}}}, "sni['a.org'].certfile='/no': No such file or directory"),
        ({"sni": {"a.org": {"certfile": 3}}}, "sni['a.org'].certfile=3: must be the path of a file"),
        ({"sni": {"a.org": {"alpn": ["h2"]}}}, "sni['a.org']='alpn': there is no such key (there are certfile, "),
        ({"keyfle": "x"}, "ssl_options='keyfle': there is no such key (did you mean 'keyfile'?)"),
        ({"protocols": "x"}, "ssl_options='protocols': there is no such key (there are certfile, keyfile, "),
        ({3: "x"}, "ssl_options=3: there is no such key (there are certfile, "),
        ({"cert_file": "x"}, "ssl_options='cert_file': is another name of 'certfile', which is there, too"),
    ],
)
def test_what_is_wrong_with_the_options_is_said_with_option_and_fault(
    files: dict[str, Any], tmp_path: Path, more: dict[Any, Any], said: str
) -> None:
    names = {**files, "folder": str(tmp_path)}
    more = {key: value.format(**names) if isinstance(value, str) else value for key, value in more.items()}
    assert problem({**files, **more}).startswith(said.format(**names))


def test_a_key_of_another_certificate_raises(files: dict[str, Any], tmp_path: Path) -> None:
    other = self_signed().write(tmp_path / "other")["keyfile"]
    assert problem({**files, "keyfile": other}) == f"keyfile={other!r}: the key is not what {files['certfile']!r} has"


def test_a_chain_in_the_wrong_order_raises_and_says_so(tmp_path: Path) -> None:
    options = AUTHORITY.issue().write(tmp_path)
    Path(options["certfile"]).write_bytes(AUTHORITY.certificate + certificate_of(options))
    assert problem(options).endswith("has as its first certificate, only as a later one")


def test_a_key_of_another_kind_raises(files: dict[str, Any], tmp_path: Path) -> None:
    key = tmp_path / "ed25519.key"
    key.write_bytes(in_pem(ed25519.Ed25519PrivateKey.generate()))
    assert "the key is not what" in problem({**files, "keyfile": key})


def test_what_only_openssl_refuses_is_said_in_its_words(tmp_path: Path) -> None:
    key, name = rsa.generate_private_key(65537, 1024), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "short")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
    files = {"certfile": tmp_path / "cert.pem", "keyfile": tmp_path / "key.pem"}
    pem = serialization.Encoding.PEM
    files["certfile"].write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(pem))
    files["keyfile"].write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    assert "OpenSSL does not take it: EE_KEY_TOO_SMALL" in problem(files)


STEP = 1 if EVERY_CASE else 7
"""Of the bytes at which a file is cut. A line of PEM has 65, so that a cut is at each place of a line."""


@pytest.mark.parametrize("cut", ["certfile", "keyfile"])
def test_a_file_cut_off_at_any_byte_raises(files: dict[str, Any], cut: str) -> None:
    path = Path(files[cut])
    whole = path.read_bytes()
    for length in range(0, len(whole) - 1, STEP):  # without the last newline it is whole
        path.write_bytes(whole[:length])
        assert problem(files).startswith(f"{cut}={files[cut]!r}: ")


@pytest.mark.parametrize("cut", ["certfile", "ca_certs"])
def test_a_chain_cut_off_within_a_later_certificate_raises(tmp_path: Path, authority: Path, cut: str) -> None:
    options: dict[str, Any] = {**AUTHORITY.issue().write(tmp_path), "ca_certs": authority}
    path = Path(options[cut])
    first = path.read_bytes()
    path.write_bytes(first + AUTHORITY.certificate)
    Certificates(options)
    for length in range(1, len(AUTHORITY.certificate) - 1, STEP):
        path.write_bytes(first + AUTHORITY.certificate[:length])
        assert "is incomplete" in problem(options)


@pytest.mark.parametrize("option", ["certfile", "keyfile", "ca_certs"])
@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
def test_a_damaged_file_raises_that_and_nothing_else(tmp_path: Path, authority: Path, option: str) -> None:
    options: dict[str, Any] = {**AUTHORITY.issue().write(tmp_path), "ca_certs": authority}
    path = Path(options[option])
    whole = path.read_bytes()
    generator = random.Random(4)
    raised, tries = 0, 1000 if EVERY_CASE else 50
    logging.disable()  # some get another date
    try:
        for _ in range(tries):
            damaged = bytearray(whole)
            for _ in range(generator.choice([1, 1, 5])):
                damaged[generator.randrange(len(damaged))] = generator.choice(b"Aa0/+=\n- \x00\xff")
            path.write_bytes(damaged)
            try:
                Certificates(options)
            except CertificateError:
                raised += 1
    finally:
        logging.disable(logging.NOTSET)
    assert raised > tries // 3


def test_a_wrong_or_missing_password_raises_and_is_not_shown(tmp_path: Path) -> None:
    pair = self_signed()
    options: dict[str, Any] = dict(pair.write(tmp_path))
    Path(options["keyfile"]).write_bytes(encrypted(pair, b"sesame"))
    place = f"keyfile={options['keyfile']!r}"
    assert problem(options) == f"{place}: the key is encrypted, and there is no password"
    assert problem({**options, "password": "secret"}) == f"{place}: the password does not open the key"
    assert problem({**options, "password": lambda: b"secret"}) == f"{place}: the password does not open the key"
    assert problem({**options, "password": 4321}) == (
        "password=<class 'int'>: must be str, bytes or a function that returns it"
    )
    assert problem({**options, "password": lambda: 4321}) == (
        "password=<class 'int'>: the function must return str or bytes"
    )
    assert problem({**options, "password": lambda: 1 // 0}).startswith("password=<class 'ZeroDivisionError'>: ")


@pytest.mark.parametrize("option", ["strict_validity", "allow_legacy_tls"])
def test_a_flag_is_true_or_false(files: dict[str, Any], option: str) -> None:
    with pytest.raises(OptionError, match=f"{option}=1: must be True or False"):
        Certificates(files, **{option: 1})  # type: ignore[arg-type]


@pytest.mark.skipif(os.name != "posix", reason="files have no mode here")
def test_a_key_that_all_can_read_is_warned_of_once_and_not_at_a_reload(files: dict[str, Any]) -> None:
    Path(files["keyfile"]).chmod(0o644)
    with pytest.warns(UserWarning, match="all users can read the private key") as caught:
        certificates = Certificates({**files, "sni": {"a.org": files, "b.org": files}})
    assert [str(warning.message) for warning in caught] == [
        f"keyfile={files['keyfile']!r}: all users can read the private key (mode 0644): chmod 600"
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert certificates.reload()


def test_a_key_in_the_file_of_its_certificate_is_warned_of_too(tmp_path: Path) -> None:
    path = tmp_path / "both.pem"
    pair = self_signed()
    path.write_bytes(pair.certificate + pair.key)
    path.chmod(0o604)
    with pytest.warns(UserWarning, match=r"both\.pem'.*mode 0604"):
        Certificates({"certfile": path})


# ---- validity


EXPIRED = {"days": 1, "starts_in": -2}
NOT_YET = {"days": 2, "starts_in": 1}


@pytest.mark.parametrize(
    "when, said", [(EXPIRED, "the certificate expired on "), (NOT_YET, "the certificate is not valid before ")]
)
def test_a_certificate_out_of_its_time_is_one_error_in_the_log_and_is_served(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, when: dict[str, float], said: str
) -> None:
    options = self_signed(**when).write(tmp_path)
    place = f"certfile={options['certfile']!r}"
    certificates = Certificates(options)
    (message,) = errors(caplog)
    assert message.startswith(f"{place}: {said}20")
    assert message.endswith(" UTC; it is served all the same")
    assert shown(certificates) == certificate_of(options)
    assert problem(options, strict_validity=True).startswith(f"{place}: {said}20")
    assert errors(caplog) == []


def test_a_certificate_of_a_context_out_of_its_time_is_told_as_well(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    context = context_with(self_signed(**EXPIRED).write(tmp_path))
    certificates = Certificates(context)
    (message,) = errors(caplog)
    assert message.startswith("ssl_options=<ssl.SSLContext object")
    assert certificates.expires_at == pytest.approx(time.time() - DAY, abs=60)
    assert "expired" in problem(context, strict_validity=True)


def test_a_certificate_of_a_name_out_of_its_time_is_told_as_well(
    files: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pair = self_signed(**EXPIRED).write(tmp_path / "late")
    certificates = Certificates({**files, "sni": {"a.org": pair}})
    assert errors(caplog)[0].startswith("sni['a.org'].certfile=")
    assert certificates.expires_at == pytest.approx(time.time() - DAY, abs=60)


def test_the_end_of_a_certificate_is_warned_of_14_days_before_and_once_a_day(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = self_signed(days=30).write(tmp_path)
    certificates = Certificates(options)
    end = certificates.expires_at or 0.0
    assert end == pytest.approx(time.time() + 30 * DAY, abs=60)
    warned = []
    for hours in range(-16 * 24, 48):
        certificates.warn_of_expiry(end + hours * 3600)
        messages = errors(caplog, logging.WARNING)
        warned += [(hours, message) for message in messages]
    assert [hours for hours, _ in warned] == list(range(-14 * 24, 48, 24))
    assert all(message.startswith(f"certfile={options['certfile']!r}: ") for _, message in warned)
    assert " expires on 20" in warned[0][1]
    assert " expired on 20" in warned[-1][1]


def test_a_renewed_certificate_is_not_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    certificates = Certificates(self_signed(days=5).write(tmp_path))
    certificates.warn_of_expiry()
    assert len(errors(caplog, logging.WARNING)) == 1
    self_signed(days=90).write(tmp_path)
    assert certificates.reload()
    certificates.warn_of_expiry(time.time() + 2 * DAY)
    assert errors(caplog) == []


# ---- contexts made elsewhere


def context_with(options: dict[str, str]) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(options["certfile"], options["keyfile"])
    return context


def test_a_context_is_taken_as_it_is_and_reload_says_that_it_leaves_it(
    files: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    context = context_with(files)
    certificates = Certificates(context)
    assert certificates.context is context
    assert certificates.expires_at == Certificates(files).expires_at
    assert certificates.reload() is False
    assert certificates.context is context
    assert errors(caplog, logging.WARNING) == [
        f"Certificates not reloaded: the files of {context} are not known (a dict names them)"
    ]


def test_a_context_without_a_certificate_raises() -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    assert problem(context) == f"ssl_options={context!r}: no certificate can be served from it (NO_SHARED_CIPHER)"
    context.verify_mode = ssl.CERT_REQUIRED
    assert "no certificate can be served from it" in problem(context)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    assert "no certificate can be served from it" in problem(context)


def test_a_certificate_that_tls_has_no_use_for_raises(tmp_path: Path) -> None:
    key = dsa.generate_private_key(2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + datetime.timedelta(days=90))
    pair = KeyPair(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM), in_pem(key))
    assert "no certificate can be served from it" in problem(pair.write(tmp_path))


def test_a_context_that_looks_for_certificates_by_name_needs_none() -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.sni_callback = lambda connection, name, context: None
    certificates = Certificates(context)
    assert certificates.context is context
    assert certificates.expires_at is None
    certificates.warn_of_expiry()


@pytest.mark.parametrize("highest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_context_that_demands_a_certificate_of_its_client_is_taken(
    files: dict[str, Any], authority: Path, highest: ssl.TLSVersion
) -> None:
    context = context_with(files)
    context.load_verify_locations(authority)
    context.verify_mode = ssl.CERT_REQUIRED
    context.maximum_version = highest
    context.set_ecdh_curve("secp384r1")  # which is not what a client guesses
    assert Certificates(context).context is context


def test_the_context_of_a_client_raises(files: dict[str, Any]) -> None:
    context = ssl.create_default_context()
    context.load_cert_chain(**files)
    assert problem(context) == f"ssl_options={context!r}: is the context of a client, not of a server"


def test_a_context_with_versions_before_tls_1_2_raises_unless_they_are_allowed(files: dict[str, Any]) -> None:
    context = context_with(files)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1
        assert "has versions before TLS 1.2: set its minimum_version" in problem(context)
        assert Certificates(context, allow_legacy_tls=True).context is context
        context.options |= ssl.OP_NO_TLSv1
        assert "has versions before TLS 1.2" in problem(context)
        context.maximum_version = ssl.TLSVersion.TLSv1_1
        assert "has versions before TLS 1.2" in problem(context)
        context.maximum_version = ssl.TLSVersion.MAXIMUM_SUPPORTED
        context.options |= ssl.OP_NO_TLSv1_1
    assert Certificates(context).context is context


def test_a_context_whose_minimum_version_nobody_has_set_is_raised_to_tls_1_2_with_one_line(
    files: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    context = context_with(files)
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED  # as create_default_context leaves it on Debian
    with caplog.at_level(logging.INFO, "tornado.general"):
        for _ in range(2):
            assert Certificates(context).context is context
            assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    (line,) = errors(caplog, logging.INFO)
    assert line == f"{context} has no minimum_version: set to TLS 1.2 (allow_legacy_tls=True leaves it)"
    assert handshake(context)[1].version() == "TLSv1.3"


def test_a_context_whose_minimum_version_nobody_has_set_is_left_where_old_versions_are_allowed_or_ruled_out(
    files: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    allowed, ruled_out = context_with(files), context_with(files)
    for context in (allowed, ruled_out):
        context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        ruled_out.options |= ssl.OP_NO_SSLv3 | ssl.OP_NO_TLSv1 | ssl.OP_NO_TLSv1_1
    with caplog.at_level(logging.INFO, "tornado.general"):
        Certificates(allowed, allow_legacy_tls=True)
        Certificates(ruled_out)
    assert errors(caplog) == []
    assert allowed.minimum_version == ruled_out.minimum_version == ssl.TLSVersion.MINIMUM_SUPPORTED


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_context_of_tls_1_2_alone_is_taken_and_of_1_1_is_not(files: dict[str, Any]) -> None:
    for protocol, taken in [(ssl.PROTOCOL_TLSv1_2, True), (ssl.PROTOCOL_TLSv1_1, False)]:
        context = ssl.SSLContext(protocol)
        context.load_cert_chain(**files)
        if taken:
            assert Certificates(context).context is context
        else:
            assert "has versions before TLS 1.2" in problem(context)


# ---- reload


def good(folder: Path) -> None:
    self_signed().write(folder)


def half_written(folder: Path) -> None:
    pair = self_signed()
    pair.write(folder)
    (folder / "cert.pem").write_bytes(pair.certificate[: len(pair.certificate) // 2])


def mismatched(folder: Path) -> None:
    (folder / "cert.pem").write_bytes(self_signed().certificate)


def unreadable(folder: Path) -> None:
    (folder / "key.pem").unlink()


def replaced_by_a_directory(folder: Path) -> None:
    (folder / "cert.pem").unlink()
    (folder / "cert.pem").mkdir()


ROTATIONS = [good, half_written, good, mismatched, good, unreadable, good, replaced_by_a_directory, good, good] * 2


@pytest.mark.parametrize("within", ["default", "name"])
def test_twenty_rotations_of_which_only_the_good_ones_are_served(
    files: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture, within: str
) -> None:
    folder = tmp_path / "rotated"
    pair = self_signed().write(folder)
    certificates = Certificates(pair if within == "default" else {**files, "sni": {"localhost": pair}})
    expected = certificate_of(pair)
    connections = []
    for rotate in ROTATIONS:
        if (folder / "cert.pem").is_dir():
            (folder / "cert.pem").rmdir()
        context = certificates.context
        rotate(folder)
        assert certificates.reload() is (rotate is good)
        if rotate is good:
            assert certificates.context is not context
            expected = certificate_of(pair)
            assert errors(caplog) == []
        else:
            assert certificates.context is context
            (message,) = errors(caplog)
            assert message.startswith("Certificates not reloaded, the old ones stay in force: ")
            assert str(folder) in message
        assert shown(certificates, "localhost") == expected
        connections.append(handshake(certificates.context))
        assert all(talk(*connection) for connection in connections)


def test_a_reload_that_fails_in_one_name_changes_nothing(files: dict[str, Any], tmp_path: Path) -> None:
    folder = Path(files["certfile"]).parent
    other = self_signed().write(tmp_path / "other")
    certificates = Certificates({**files, "sni": {"example.org": other}})
    before = certificate_of(files)
    self_signed().write(folder)
    Path(other["keyfile"]).unlink()
    assert not certificates.reload()
    assert shown(certificates) == before
    Path(other["keyfile"]).touch(0o600)
    self_signed().write(tmp_path / "other")
    assert certificates.reload()
    assert shown(certificates) == certificate_of(files)
    assert shown(certificates, "example.org") == certificate_of(other)


def test_a_reload_is_strict_where_the_first_load_was(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    options = self_signed().write(tmp_path)
    before = certificate_of(options)
    strict, easy = Certificates(options, strict_validity=True), Certificates(options)
    self_signed(**EXPIRED).write(tmp_path)
    assert strict.reload() is False
    assert len(errors(caplog)) == 1
    assert shown(strict) == before
    assert easy.reload() is True
    assert len(errors(caplog)) == 1
    assert shown(easy) == certificate_of(options)


def test_a_password_function_that_fails_in_a_reload_keeps_the_old(
    files: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    answers = itertools.chain(["sesame"], (1 // 0 for _ in range(1)))
    certificates = Certificates({**files, "password": lambda: next(answers)})
    assert certificates.reload() is False
    assert "ZeroDivisionError" in errors(caplog)[0]
    assert shown(certificates) == certificate_of(files)


def test_new_authorities_of_clients_are_in_force_after_a_reload(
    tmp_path: Path, mutual: dict[str, Any], authority: Path
) -> None:
    theirs = CertificateAuthority()
    client = client_of(authority, theirs, tmp_path / "client")
    certificates = Certificates(mutual)
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
        handshake(certificates.context, client)
    authority.write_bytes(AUTHORITY.certificate + theirs.certificate)
    assert certificates.reload()
    handshake(certificates.context, client)


def test_options_changed_after_they_were_given_change_nothing(files: dict[str, Any], tmp_path: Path) -> None:
    names = {"example.org": dict(files)}
    given = {**files, "sni": names}
    certificates = Certificates(given)
    given["certfile"] = names["example.org"]["certfile"] = "/no"
    assert certificates.reload()


# ---- clients


def test_a_client_verifies_the_server_and_its_name_by_default(files: dict[str, Any], tmp_path: Path) -> None:
    for context in (client_context(), client_context({}), client_context({"alpn": ["h2"]})):
        assert context.verify_mode == ssl.CERT_REQUIRED
        assert context.check_hostname
        assert context.minimum_version == ssl.TLSVersion.TLSv1_2
        with pytest.raises(ssl.SSLCertVerificationError, match="self-signed certificate"):
            handshake(Certificates(files).context, context)
    assert client_context() is client_context()


def test_a_client_with_authorities_trusts_them_alone_and_checks_the_name(tmp_path: Path, authority: Path) -> None:
    context = client_context({"ca_certs": authority})
    certificates = Certificates(AUTHORITY.issue("a.example", "*.b.example").write(tmp_path))
    for name in ("a.example", "x.b.example"):
        handshake(certificates.context, context, name)
    for name in ("b.example", "x.a.example", "localhost"):
        with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
            handshake(certificates.context, context, name)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(Certificates(CertificateAuthority().issue("a.example").write(tmp_path)).context, context, "a.example")


def test_a_client_without_verification_has_no_check_of_the_name(files: dict[str, Any]) -> None:
    handshake(Certificates(files).context, client_context({"cert_reqs": ssl.CERT_NONE}), "any.name")


def test_the_context_of_a_client_is_taken_as_it_is() -> None:
    context = ssl.create_default_context()
    assert client_context(context) is context


@pytest.mark.parametrize(
    "options, said",
    [
        ({"sni": {}}, "ssl_options='sni': there is no such key"),
        ({"keyfile": "/no"}, "keyfile='/no': is a key without a certificate"),
        ({"ca_certs": "/no"}, "ca_certs='/no': No such file"),
        ({"ciphers": "NO"}, "ciphers='NO': names no cipher"),
        (3, "ssl_options=3: must be a dict or an ssl.SSLContext"),
        (ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), "is the context of a server, not of a client"),
    ],
)
def test_what_is_wrong_with_a_clients_options_raises(options: Any, said: str) -> None:
    with pytest.raises(CertificateError) as caught:
        client_context(options)
    assert said in str(caught.value)


# ---- certificates for development


def test_a_pair_is_written_with_its_key_for_this_user_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        (tmp_path / "new").mkdir()
        (tmp_path / "new" / "key.pem").write_bytes(b"what was there, for all to read")
        options = self_signed().write(tmp_path / "new")
    finally:
        os.umask(before)
    assert options == {"certfile": str(tmp_path / "new/cert.pem"), "keyfile": str(tmp_path / "new/key.pem")}
    assert stat.S_IMODE(Path(options["keyfile"]).stat().st_mode) == 0o600
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["cert.pem", "key.pem"]


def test_a_pair_does_not_show_its_key() -> None:
    pair = self_signed()
    assert "PRIVATE" not in repr(pair)
    assert "BEGIN CERTIFICATE" in repr(pair)


@pytest.mark.parametrize("make", [self_signed, AUTHORITY.issue], ids=["self_signed", "issue"])
def test_a_certificate_is_for_its_names_and_its_time(make: Callable[..., KeyPair]) -> None:
    pair = make("a.example", "bücher.example", "10.0.0.7", days=7, starts_in=3)
    certificate = x509.load_pem_x509_certificate(pair.certificate)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["a.example", "xn--bcher-kva.example"]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["10.0.0.7"]
    assert certificate.not_valid_before_utc.timestamp() == pytest.approx(time.time() + 3 * DAY, abs=60)
    assert certificate.not_valid_after_utc.timestamp() == pytest.approx(time.time() + 10 * DAY, abs=60)


@pytest.mark.parametrize("name", ["", "a..b", "x" * 70 + ".example"])
def test_a_name_that_no_certificate_can_have_raises(name: str) -> None:
    with pytest.raises(ValueError):
        self_signed(name)


def test_what_an_authority_issues_passes_the_strictest_check(tmp_path: Path, mutual: dict[str, Any]) -> None:
    certificates = Certificates(mutual)
    client = client_of(mutual["ca_certs"], AUTHORITY, tmp_path / "client")
    for context in (client, certificates.context):
        context.verify_flags |= ssl.VERIFY_X509_STRICT
    handshake(certificates.context, client)
    alone = self_signed().write(tmp_path / "alone")
    trusting = client_context({"ca_certs": alone["certfile"]})
    trusting.verify_flags |= ssl.VERIFY_X509_STRICT
    handshake(Certificates(alone).context, trusting)
