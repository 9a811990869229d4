"""OpenSSL decides what is served: its files in all their forms, its speed, and all that it offers without a context of
one's own. And what a server does with its certificates while it runs.
"""

import asyncio
import datetime
import gc
import logging
import os
import shutil
import signal
import ssl
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from iostreamsrv import Event, IOStream, TCPClient, TCPServer
from iostreamsrv.certificates import CertificateAuthority, Certificates, KeyPair, client_context, self_signed
from iostreamsrv.sansio.tls import TLSEngine
from iostreamsrv.server.base import core_of
from tests.support.certificates import TRUSTING_ALL, certificate_for, errors, handshake, problem, shown
from tests.support.peers import tcp_pair
from tests.support.programs import Program
from tests.support.programs import eventually as eventually_in_a_thread
from tests.support.tiers import EVERY_CASE
from tests.support.waiting import eventually

DAY = datetime.timedelta(days=1)
UNVERIFIED = {"cert_reqs": ssl.CERT_NONE}

with_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl here: apt-get install openssl")
on_a_loop = pytest.mark.usefixtures("io_loop")


def openssl(*arguments: str | Path, data: bytes = b"") -> bytes:
    return subprocess.run(
        ["openssl", *map(str, arguments)], input=data, capture_output=True, check=True, timeout=60
    ).stdout


@pytest.fixture(scope="session")
def rsa_pair() -> KeyPair:
    """A certificate with an RSA key of 2048 bits."""
    return certificate_for(rsa.generate_private_key(65537, 2048))


@pytest.fixture(scope="session")
def slow_pair() -> KeyPair:
    """A certificate with an RSA key of 4096 bits, which takes long to check, and longer to make."""
    return certificate_for(rsa.generate_private_key(65537, 4096))


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Any]:
    """A certificate and its key."""
    return dict(self_signed().write(tmp_path / "files"))


# ---- files in all the forms that OpenSSL reads


def with_a_byte_order_mark(pem: bytes) -> bytes:
    return b"\xef\xbb\xbf" + pem


def with_labels_in_lower_case(pem: bytes) -> bytes:
    return b"-----BEGIN dh parameters-----\nAAAA\n-----END dh parameters-----\n" + pem


def with_a_comment_behind_dashes(pem: bytes) -> bytes:
    return b"----- whose it is -----\n" + pem + b"---- and where from\n"


def with_a_last_line_that_begins_with_a_dash(pem: bytes) -> bytes:
    return pem + b"- that is all"


def with_the_end_of_a_block(pem: bytes) -> bytes:
    return b"-----END CERTIFICATE-----\n" + pem


def with_parameters_of_x9_42(pem: bytes) -> bytes:
    return pem + openssl("genpkey", "-genparam", "-algorithm", "DHX", "-pkeyopt", "group:dh_2048_256")


def trusted(pem: bytes) -> bytes:
    return openssl("x509", "-trustout", "-addtrust", "serverAuth", data=pem)


FORMS = [
    with_a_byte_order_mark,
    with_labels_in_lower_case,
    with_a_comment_behind_dashes,
    with_a_last_line_that_begins_with_a_dash,
    with_the_end_of_a_block,
    with_parameters_of_x9_42,
    trusted,
]


@with_openssl
@pytest.mark.parametrize("form", FORMS)
def test_a_certificate_in_each_form_that_openssl_reads_is_served(
    files: dict[str, Any], form: Callable[[bytes], bytes]
) -> None:
    path = Path(files["certfile"])
    certificate = path.read_bytes()
    path.write_bytes(form(certificate))
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(**files)
    certificates = Certificates(files)
    assert shown(certificates) == certificate
    assert certificates.expires_at == pytest.approx(time.time() + 365 * 86400, abs=3600)
    handshake(certificates.context, client_context({"ca_certs": path}))


@with_openssl
@pytest.mark.parametrize(
    "form", [form for form in FORMS if form not in (with_a_last_line_that_begins_with_a_dash, with_the_end_of_a_block)]
)
def test_a_wrong_key_is_explained_whatever_the_form_of_the_certificate(
    files: dict[str, Any], tmp_path: Path, form: Callable[[bytes], bytes]
) -> None:
    path, other = Path(files["certfile"]), self_signed().write(tmp_path / "other")["keyfile"]
    path.write_bytes(form(path.read_bytes()))
    assert problem({**files, "keyfile": other}) == f"keyfile={other!r}: the key is not what {str(path)!r} has"


@with_openssl
@pytest.mark.parametrize("cipher", ["aes-192-cbc", "camellia-128-cbc", "camellia-256-cbc", "aria-256-cbc"])
@pytest.mark.parametrize("form", ["pkcs8 -topk8 -v2 {}", "rsa -traditional -{}"], ids=["pkcs8", "traditional"])
def test_a_key_under_each_cipher_that_openssl_has_is_opened(
    rsa_pair: KeyPair, tmp_path: Path, cipher: str, form: str
) -> None:
    options: dict[str, Any] = rsa_pair.write(tmp_path)
    path = Path(options["keyfile"])
    path.write_bytes(openssl(*form.format(cipher).split(), "-in", path, "-passout", "pass:sesame"))
    assert b"ENCRYPTED" in path.read_bytes()
    assert shown(Certificates({**options, "password": "sesame"})) == rsa_pair.certificate
    assert problem(options) == f"keyfile={str(path)!r}: the key is encrypted, and there is no password"
    assert problem({**options, "password": "x"}) == f"keyfile={str(path)!r}: the password does not open the key"


# ---- how long it takes


def test_a_key_is_not_checked_a_second_time(slow_pair: KeyPair, tmp_path: Path) -> None:
    options = slow_pair.write(tmp_path)
    Certificates(options)
    began = time.process_time()
    for _ in range(10):
        Certificates(options)
    assert time.process_time() - began < 1.5  # a check takes 0.3


def context_of(stream: Any) -> ssl.SSLContext:
    context: ssl.SSLContext = stream._tls.engine.object.context
    return context


@on_a_loop
@pytest.mark.gen_test
async def test_start_tls_with_a_dict_reads_the_files_for_the_first_client_only(
    slow_pair: KeyPair, tmp_path: Path
) -> None:
    options = slow_pair.write(tmp_path)

    async def context_of_one() -> Any:
        ours, theirs = tcp_pair()
        server, client = IOStream(ours), IOStream(theirs)
        ended = client.start_tls(False, UNVERIFIED, "localhost")
        server = await server.start_tls(True, dict(options))
        client = await ended
        contexts = context_of(server), context_of(client)
        server.close()
        client.close()
        return contexts

    first = await context_of_one()
    began = time.process_time()
    for _ in range(10):
        assert await context_of_one() == first
    assert time.process_time() - began < 1.5  # reading takes 0.3
    self_signed("localhost").write(tmp_path)
    renewed, _ = await context_of_one()
    assert renewed is not first[0]


@on_a_loop
@pytest.mark.gen_test
async def test_a_client_with_a_dict_reads_the_authorities_for_the_first_connection_only(files: dict[str, Any]) -> None:
    class Echo(TCPServer):
        async def handle_stream(self, stream: IOStream, address: Any) -> None:
            await stream.write(await stream.read_until(b"\n"))

    async with Echo(ssl_options=files) as server:
        server.listen(0, "127.0.0.1")
        contexts = set()
        for _ in range(3):
            trust = {"ca_certs": files["certfile"]}
            stream = await TCPClient().connect("localhost", server.addresses[0][1], ssl_options=trust)
            contexts.add(context_of(stream))
            await stream.aclose()
        assert len(contexts) == 1


THIRTY_NAMES = """
import sys
import iostreamsrv


class EchoServer(iostreamsrv.TCPServer):
    async def handle_stream(self, stream, address):
        while True:
            await stream.write(await stream.read_until(b"\\n"))


files = {"certfile": sys.argv[1], "keyfile": sys.argv[2]}
server = EchoServer(ssl_options={**files, "sni": {f"host-{n}.example": files for n in range(30)}})
server.events.subscribe(lambda event: print(event.text, flush=True), "reload")
server.listen(0, "127.0.0.1")
server.listen(0, "127.0.0.1", ssl_options=False)
print("listening on %s:%d" % server.addresses[0], "listening on %s:%d" % server.addresses[1], sep="\\n")
iostreamsrv.run(server)
"""


def test_a_reload_of_thirty_rsa_keys_at_sighup_keeps_nobody_waiting(rsa_pair: KeyPair, tmp_path: Path) -> None:
    files = rsa_pair.write(tmp_path)
    with Program("-c", THIRTY_NAMES, files["certfile"], files["keyfile"]).listening(2) as program:
        stop, waits = threading.Event(), []

        def ask() -> None:
            with program.client(1) as client:
                while not stop.is_set():
                    began = time.monotonic()
                    assert client.ask(b"hello\n") == b"hello\n"
                    waits.append(time.monotonic() - began)
                    time.sleep(0.001)

        asking = threading.Thread(target=ask)
        asking.start()
        eventually_in_a_thread(lambda: waits, lambda: waits)  # it runs, and minds the signal
        for _ in range(3):
            program.send_signal(signal.SIGHUP)
            assert program.line().startswith("Certificates reloaded: ")
        stop.set()
        asking.join()
    assert len(waits) > 10
    assert max(waits) < 0.5  # a check of each key takes 2 s


# ---- names that are not ASCII


def test_handshakes_by_name_in_two_threads_leave_no_hook_behind(files: dict[str, Any]) -> None:
    context = Certificates({**files, "sni": {"example.org": files}}).context
    before = sys.unraisablehook
    start = threading.Barrier(4)
    found = []

    def shake_hands() -> None:
        start.wait()
        for _ in range(300 if EVERY_CASE else 40):
            server, client = TLSEngine(context, True), TLSEngine(TRUSTING_ALL, False, "example.org")
            while not (client.handshake() and server.handshake()):
                server.feed(client.take_outgoing())
                server.handshake()
                client.feed(server.take_outgoing())
        found.append(sys.unraisablehook)

    threads = [threading.Thread(target=shake_hands) for _ in range(4)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
        left, sys.unraisablehook = sys.unraisablehook, before
    assert len(found) == 4
    assert left is before


# ---- listeners, reloads, events


class Quiet(TCPServer):
    async def handle_stream(self, stream: IOStream, address: Any) -> None:
        await stream.read_until_close()


@on_a_loop
@pytest.mark.gen_test
async def test_the_certificates_of_listeners_that_were_stopped_are_let_go_of(files: dict[str, Any]) -> None:
    server = Quiet()
    made = []
    for _ in range(5):
        server.listen(0, "127.0.0.1", ssl_options=files)
        (certificates,) = server.certificates
        made.append(weakref.ref(certificates))
        server.stop()
        assert server.certificates == []
    del certificates
    await asyncio.sleep(0)
    gc.collect()
    assert [reference() for reference in made] == [None] * 5


@on_a_loop
@pytest.mark.gen_test
async def test_a_client_that_is_greeted_when_its_listener_stops_is_still_served(files: dict[str, Any]) -> None:
    server = Quiet(proxy_protocol=["127.0.0.0/8"])
    server.listen(0, "127.0.0.1", ssl_options=files)
    (certificates,) = server.certificates
    stream = await TCPClient().connect(*server.addresses[0][:2])
    await stream.write(b"PROXY TCP4 ")
    listeners = core_of(server).listeners
    await eventually(lambda: listeners.setups[1:] and listeners.setups[1].reading_headers)
    server.stop()
    assert server.certificates == [certificates]
    self_signed().write(Path(files["certfile"]).parent)
    assert server.reload_certificates()
    await stream.write(b"1.2.3.4 5.6.7.8 1 2\r\n")
    secure = await stream.start_tls(False, {"ca_certs": files["certfile"]}, "localhost")
    await eventually(lambda: len(server.streams))
    assert server.certificates == []
    await secure.aclose()
    await server.close_all_connections()


@on_a_loop
@pytest.mark.gen_test
async def test_bound_listeners_that_wait_for_start_are_reloaded_too(files: dict[str, Any]) -> None:
    server = Quiet()
    server.bind(0, "127.0.0.1", ssl_options=files)
    assert len(server.certificates) == 1
    server.stop()


def events_of(server: TCPServer) -> list[Event]:
    events: list[Event] = []
    server.events.subscribe(events.append, "reload")
    return events


@on_a_loop
@pytest.mark.gen_test
async def test_a_reload_is_an_event_be_it_good_or_bad(files: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    server = Quiet(ssl_options=files)
    events = events_of(server)
    assert server.reload_certificates() is True
    Path(files["certfile"]).write_text("half a cert")
    assert server.reload_certificates() is False
    good, bad = events
    assert (good.kind, good.level, good.error) == ("reload", logging.INFO, None)
    assert good.text.startswith(f"Certificates reloaded: certfile={files['certfile']!r} until 20")
    assert (bad.kind, bad.level) == ("reload", logging.ERROR)
    assert bad.text.endswith(f"the old ones stay in force: {bad.error}")
    assert errors(caplog) == [bad.text]


@on_a_loop
@pytest.mark.gen_test
async def test_a_context_of_ones_own_is_not_reloaded_and_that_is_said(
    files: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(**files)
    server = Quiet(ssl_options=context)
    events = events_of(server)
    assert server.reload_certificates() is False
    (event,) = events
    assert (event.level, event.error) == (logging.WARNING, None)
    assert errors(caplog, logging.WARNING) == [event.text]
    assert event.text == f"Certificates not reloaded: the files of {context} are not known (a dict names them)"


def test_what_was_prepared_is_what_the_next_reload_takes_and_no_later_one(files: dict[str, Any]) -> None:
    certificates = Certificates(files)
    folder = Path(files["certfile"]).parent
    self_signed().write(folder)
    prepared = Path(files["certfile"]).read_bytes()
    certificates.prepare()
    assert shown(certificates) != prepared
    self_signed().write(folder)
    assert certificates.reload()
    assert shown(certificates) == prepared
    assert certificates.reload()
    assert shown(certificates) == Path(files["certfile"]).read_bytes()


# ---- what the dict takes


def offered(options: dict[str, Any], ciphers: str, name: str | None = None) -> bytes:
    """The certificate for a client of TLS 1.2 with these ciphers, in PEM."""
    client = client_context({**UNVERIFIED, "ciphers": ciphers})
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    der = handshake(Certificates(options).context, client, name)[1].getpeercert(binary_form=True)
    assert der is not None
    return ssl.DER_cert_to_PEM_cert(der).encode()


@pytest.fixture
def both(rsa_pair: KeyPair, tmp_path: Path) -> dict[str, Any]:
    """An ECDSA pair beside an RSA pair."""
    pairs = self_signed().write(tmp_path / "ec"), rsa_pair.write(tmp_path / "rsa")
    return {name: [pair[name] for pair in pairs] for name in ("certfile", "keyfile")}


@pytest.mark.parametrize("name", [None, "example.org"])
def test_a_client_gets_of_an_rsa_beside_an_ecdsa_certificate_the_one_it_can_verify(
    both: dict[str, Any], files: dict[str, Any], name: str | None
) -> None:
    options = both if name is None else {**files, "sni": {name: both}}
    ecdsa, of_rsa = (Path(path).read_bytes() for path in both["certfile"])
    assert offered(options, "ECDHE-ECDSA-AES128-GCM-SHA256", name) == ecdsa
    assert offered(options, "ECDHE-RSA-AES128-GCM-SHA256", name) == of_rsa


def test_both_certificates_may_be_in_files_with_their_keys_and_have_a_password_each(
    both: dict[str, Any], tmp_path: Path
) -> None:
    passwords = [b"sesame", b"open"]
    paths = []
    for number, (certfile, keyfile) in enumerate(zip(both["certfile"], both["keyfile"], strict=True)):
        key = serialization.load_pem_private_key(Path(keyfile).read_bytes(), None)
        locked = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(passwords[number]),
        )
        path = tmp_path / f"{number}.pem"
        path.touch(0o600)
        path.write_bytes(Path(certfile).read_bytes() + locked)
        paths.append(path)
    ecdsa, of_rsa = (Path(path).read_bytes() for path in both["certfile"])
    options = {"certfile": paths, "password": [b"sesame", lambda: "open"]}
    assert offered(options, "ECDHE-ECDSA-AES128-GCM-SHA256") == ecdsa
    assert offered(options, "ECDHE-RSA-AES128-GCM-SHA256") == of_rsa
    assert problem({**options, "password": "sesame"}).endswith("the password does not open the key")
    assert "there must be one, or as many as there are of certfile: 2" in problem({**options, "password": ["a"] * 3})


def test_each_certificate_of_several_is_checked_alone(both: dict[str, Any], files: dict[str, Any]) -> None:
    (ec_cert, rsa_cert), (ec_key, _) = both["certfile"], both["keyfile"]
    assert problem({**both, "keyfile": [ec_key]}) == (
        f"keyfile={ec_key!r}: there must be as many as there are of certfile: 2"
    )
    assert problem({**both, "keyfile": [ec_key, ec_key]}) == (
        f"keyfile[1]={ec_key!r}: the key is not what {rsa_cert!r} has"
    )
    assert problem({**both, "certfile": [ec_cert, "/no"]}) == "certfile[1]='/no': No such file or directory"
    assert problem({**both, "certfile": [ec_cert, 3]}) == "certfile[1]=3: must be the path of a file"
    assert problem({**files, "sni": {"a.org": {**both, "certfile": [ec_cert, "/no"]}}}).startswith(
        "sni['a.org'].certfile[1]='/no': "
    )
    assert problem({"certfile": [ec_cert, files["certfile"]], "keyfile": [ec_key, files["keyfile"]]}) == (
        f"certfile[1]={files['certfile']!r}: "
        "has a key of the same kind as certfile[0], in whose place it would be served"
    )
    assert "must be the path of a file" in problem({"certfile": []})


def test_the_expiry_of_each_certificate_of_several_is_told(
    tmp_path: Path, rsa_pair: KeyPair, caplog: pytest.LogCaptureFixture
) -> None:
    soon = certificate_for(rsa.generate_private_key(65537, 2048), days=3).write(tmp_path / "soon")
    pairs = self_signed().write(tmp_path / "ec"), soon
    options: dict[str, Any] = {name: [pair[name] for pair in pairs] for name in ("certfile", "keyfile")}
    certificates = Certificates({**rsa_pair.write(tmp_path / "own"), "sni": {"a.org": options}})
    certificates.warn_of_expiry()
    (line,) = errors(caplog, logging.WARNING)
    assert line.startswith(f"sni['a.org'].certfile[1]={soon['certfile']!r}: expires on 20")
    assert certificates.expires_at == pytest.approx(time.time() + 3 * 86400, abs=60)


def test_readable_keys_of_several_are_warned_of(both: dict[str, Any]) -> None:
    Path(both["keyfile"][1]).chmod(0o644)
    with pytest.warns(UserWarning, match="all users can read the private key") as caught:
        Certificates(both)
    assert len(caught) == 1


def test_tls_1_3_alone_may_be_asked_for(files: dict[str, Any]) -> None:
    options = {**files, "minimum_version": ssl.TLSVersion.TLSv1_3, "sni": {"example.org": files}}
    context = Certificates(options).context
    for name in (None, "example.org"):
        client = client_context(UNVERIFIED)
        assert handshake(context, client, name)[1].version() == "TLSv1.3"
        client.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises(ssl.SSLError):
            handshake(context, client, name)
    assert client_context({"minimum_version": ssl.TLSVersion.TLSv1_3}).minimum_version == ssl.TLSVersion.TLSv1_3


@pytest.mark.parametrize("count", [0, 1, 4])
def test_a_client_gets_as_many_tickets_as_were_asked_for(files: dict[str, Any], count: int) -> None:
    context = Certificates({**files, "num_tickets": count}).context
    assert context.num_tickets == count
    server, client = TLSEngine(context, True), TLSEngine(TRUSTING_ALL, False)
    client.handshake()
    server.feed(client.take_outgoing())
    server.handshake()
    client.feed(server.take_outgoing())
    assert client.handshake()
    server.feed(client.take_outgoing())
    assert server.handshake()
    server.write(b"answer")
    client.feed(server.take_outgoing())
    answer = client.read(100)
    while answer is None and client.has_input:  # tickets are much to do for one call
        answer = client.read(100)
    assert answer == b"answer"
    assert client.object.session is not None
    assert client.object.session.has_ticket is (count > 0)


class Revoking(CertificateAuthority):
    """An authority that takes back what it has issued."""

    def crl(self, *pairs: KeyPair, expires_in: float = 7) -> bytes:
        now = datetime.datetime.now(datetime.UTC)
        builder = x509.CertificateRevocationListBuilder(self._subject, now - DAY, now + expires_in * DAY)
        for pair in pairs:
            number = x509.load_pem_x509_certificate(pair.certificate).serial_number
            revoked = x509.RevokedCertificateBuilder(number, now - DAY).build()
            builder = builder.add_revoked_certificate(revoked)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


@pytest.fixture
def revoking(tmp_path: Path) -> tuple[Revoking, dict[str, Any]]:
    """An authority, and the options of a server that asks for its certificates, and looks into ``crl.pem``."""
    authority = Revoking()
    (tmp_path / "ca.pem").write_bytes(authority.certificate)
    (tmp_path / "crl.pem").write_bytes(authority.crl())
    pair = authority.issue().write(tmp_path / "server")
    more = {"ca_certs": tmp_path / "ca.pem", "crl": tmp_path / "crl.pem", "cert_reqs": ssl.CERT_REQUIRED}
    return authority, {**pair, **more}


def test_a_client_whose_certificate_was_revoked_is_refused(
    revoking: tuple[Revoking, dict[str, Any]], tmp_path: Path
) -> None:
    authority, options = revoking
    good, bad = (authority.issue(name, client=True) for name in ("good", "bad"))
    clients = [
        client_context({**pair.write(tmp_path / name), "ca_certs": options["ca_certs"]})
        for name, pair in {"good": good, "bad": bad}.items()
    ]
    certificates = Certificates({**options, "sni": {"example.org": self_signed().write(tmp_path / "org")}})
    for client in clients:
        handshake(certificates.context, client)
    options["crl"].write_bytes(authority.crl(bad))
    assert certificates.reload()
    handshake(certificates.context, clients[0])
    with pytest.raises(ssl.SSLCertVerificationError, match="certificate revoked"):
        handshake(certificates.context, clients[1])


def test_a_client_refuses_a_server_whose_certificate_was_revoked(
    revoking: tuple[Revoking, dict[str, Any]], tmp_path: Path
) -> None:
    authority, _ = revoking
    pair = authority.issue()
    served = Certificates(pair.write(tmp_path / "served")).context
    trust = {"ca_certs": tmp_path / "ca.pem", "crl": tmp_path / "crl.pem"}
    handshake(served, client_context(trust))
    trust["crl"].write_bytes(authority.crl(pair))
    with pytest.raises(ssl.SSLCertVerificationError, match="certificate revoked"):
        handshake(served, client_context(trust))


def test_an_expired_crl_is_an_error_in_the_log_which_says_what_comes_of_it(
    revoking: tuple[Revoking, dict[str, Any]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    authority, options = revoking
    certificates = Certificates(options)
    certificates.warn_of_expiry()
    assert errors(caplog) == []
    assert certificates.expires_at == pytest.approx(time.time() + 365 * 86400, abs=3600)
    options["crl"].write_bytes(authority.crl(expires_in=-0.5))
    assert certificates.reload()
    (line,) = errors(caplog)
    assert line.startswith(f"crl={str(options['crl'])!r}: the CRL expired on 20")
    assert line.endswith(" UTC; clients of its authority are refused")
    certificates.warn_of_expiry()
    assert len(errors(caplog, logging.WARNING)) == 1
    client = authority.issue("late", client=True).write(tmp_path / "client")
    with pytest.raises(ssl.SSLCertVerificationError, match="CRL has expired"):
        handshake(certificates.context, client_context({**client, "ca_certs": options["ca_certs"]}))


def test_what_is_wrong_with_a_crl_is_said(revoking: tuple[Revoking, dict[str, Any]], files: dict[str, Any]) -> None:
    authority, options = revoking
    path = options["crl"]
    place = f"crl={str(path)!r}: "
    whole = path.read_bytes()
    assert problem({**files, "crl": path}) == f"{place}needs ca_certs: the authorities of the clients"
    path.write_bytes(authority.certificate)
    assert problem(options) == f"{place}holds no CRL in PEM"
    path.write_bytes(whole + self_signed().certificate)
    assert "which would be trusted" in problem(options)
    for length in range(0, len(whole) - 1, 7):
        path.write_bytes(whole[:length])
        assert problem(options).startswith(place)
        if length:
            path.write_bytes(whole + whole[:length])
            assert problem(options) == f"{place}is incomplete: it has half of a PEM block"
    path.unlink()
    assert problem(options) == f"{place}No such file or directory"
    assert problem({**options, "ca_certs": files["keyfile"]}).endswith("holds no certificate in PEM")


@pytest.mark.parametrize(
    "more, said",
    [
        ({"minimum_version": ssl.TLSVersion.TLSv1_1}, "must be ssl.TLSVersion.TLSv1_2 or ssl.TLSVersion.TLSv1_3"),
        ({"minimum_version": "1.3"}, "must be ssl.TLSVersion.TLSv1_2 or ssl.TLSVersion.TLSv1_3"),
        ({"num_tickets": -1}, "num_tickets=-1: must be an integer from 0 to 255"),
        ({"num_tickets": True}, "num_tickets=True: must be an integer from 0 to 255"),
        ({"num_tickets": "2"}, "num_tickets='2': must be an integer from 0 to 255"),
        ({"crl": 3}, "crl=3: must be the path of a file"),
        ({"min_version": 3}, "did you mean 'minimum_version'?"),
        ({"tickets": 3}, "did you mean 'num_tickets'?"),
        ({"crls": 3}, "did you mean 'crl'?"),
    ],
)
def test_what_is_wrong_with_these_options_is_said(files: dict[str, Any], more: dict[str, Any], said: str) -> None:
    assert said in problem({**files, **more})


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_key_may_come_out_of_a_pipe(files: dict[str, Any], tmp_path: Path) -> None:
    pipe = tmp_path / "key.pipe"
    os.mkfifo(pipe, 0o600)
    writer = threading.Thread(target=pipe.write_bytes, args=(Path(files["keyfile"]).read_bytes(),))
    writer.start()
    assert shown(Certificates({**files, "keyfile": pipe})) == Path(files["certfile"]).read_bytes()
    writer.join()
