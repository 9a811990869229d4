"""A service as it is started: signals, sockets of others, workers that have accepted enough, what changes meanwhile."""

import signal
import ssl
import sys
from pathlib import Path

import pytest

from iostreamsrv.certificates import self_signed
from tests.support import PROJECT
from tests.support.programs import Program, Served, eventually

pytestmark = [
    pytest.mark.second_tier,
    pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc, and passes descriptors as systemd does"),
]

TARGET = "tests.supervisor.served:Server"


def workers(service: Program) -> set[int]:
    return set(map(int, Path(f"/proc/{service.pid}/task/{service.pid}/children").read_text().split()))


def test_quit_ends_at_once_although_a_client_is_there() -> None:
    with Served(TARGET).listening() as service, service.client() as client:
        client.ask(b"x\n")
        assert service.end(signal.SIGQUIT)[0] == 0
        assert client.line() == b""


def test_ttin_and_ttou_change_the_number_of_workers() -> None:
    with Served(TARGET).listening() as service:
        assert len(workers(service)) == 1
        service.send_signal(signal.SIGTTIN)
        eventually(lambda: len(workers(service)) == 2, service.said)
        service.send_signal(signal.SIGTTOU)
        eventually(lambda: len(workers(service)) == 1, service.said)
        with service.client() as client:
            assert int(client.ask(b"x\n")) in workers(service)
        assert service.end()[0] == 0


# As systemd does it: a process that has its number already sets the variables, then becomes the program.
ACTIVATES = f"""
import os, socket, sys
listener = socket.create_server(("127.0.0.1", 0))
print("listening on 127.0.0.1:%d" % listener.getsockname()[1])
if listener.fileno() != 3:
    os.dup2(listener.fileno(), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="chat")
words = ["-m", "iostreamsrv", "serve", "{TARGET}", "--bind", "systemd:chat"]
os.execv(sys.executable, [sys.executable, *words])
"""


def test_sockets_that_systemd_passes_on_are_served() -> None:
    with Program("-c", ACTIVATES).listening() as service:
        with service.client() as client:
            assert int(client.ask(b"x\n")) in workers(service)
        assert service.end()[0] == 0


def test_a_worker_that_has_accepted_enough_is_replaced_and_no_client_is_lost() -> None:
    with Served(TARGET, "--worker-max-accepted", "5", "--jitter", "0").listening() as service:
        with service.client() as staying:
            first = staying.ask(b"x\n")

            def another() -> bool:
                with service.client() as client:
                    line = client.ask(b"x\n")
                assert line
                return line != first

            eventually(another, service.said)
            assert staying.ask(b"x\n") == first
        assert service.end()[0] == 0


def test_changed_certificates_are_noticed_without_a_signal(tmp_path: Path) -> None:
    files = self_signed().write(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE

    def certificate() -> bytes | None:
        with service.client(tls=context) as client:
            assert isinstance(client.socket, ssl.SSLSocket)
            client.ask(b"x\n")
            return client.socket.getpeercert(binary_form=True)

    options = ("--tls-cert", files["certfile"], "--tls-key", files["keyfile"])
    with Served(TARGET, *options, patience=60).listening() as service:
        before = certificate()
        self_signed().write(tmp_path)
        eventually(lambda: certificate() != before, service.said, patience=50)
        assert service.end()[0] == 0


RELEASE = """
import iostreamsrv

async def handle(stream, address):
    await stream.write(b"{}\\n")
"""


@pytest.mark.parametrize("by_path", [True, False])
def test_a_link_in_the_path_is_followed_by_a_reload_and_one_to_the_current_folder_is_not(
    tmp_path: Path, by_path: bool
) -> None:
    link = tmp_path / "current"
    for name in "one", "two":
        (tmp_path / name).mkdir()
        (tmp_path / name / "app.py").write_text(RELEASE.format(name))
    link.symlink_to("one")
    folder, path = (tmp_path, f"{PROJECT}:{link}") if by_path else (link, str(PROJECT))
    words = ("-m", "iostreamsrv", "serve", "app:handle", "--bind", f"unix:{tmp_path}/socket")
    with Program(*words, folder=folder, environment={"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}) as service:
        eventually(lambda: "listening on" in service.said(), service.said)
        service.addresses.append(f"{tmp_path}/socket")

        def answer() -> bytes:
            with service.client() as client:
                return client.line()

        assert answer() == b"one\n"
        (before,) = workers(service)
        link.unlink()
        link.symlink_to("two")
        service.send_signal(signal.SIGHUP)
        eventually(lambda: len(workers(service)) == 1 and before not in workers(service), service.said)
        assert answer() == (b"two\n" if by_path else b"one\n")
        assert service.end()[0] == 0
