"""The run of Tornado's tests on our classes is worth something only if it fails when our classes were not what ran."""

import subprocess
import sys

import pytest

from tests.conformance import expectations
from tests.conformance.runner import Verdict, judge
from tests.conformance.witness import Seen
from tests.support import PROJECT

STREAMS = "iostream_test.TestIOStream.test_write_zero_bytes"
PIPES = "iostream_test.TestPipeIOStream.test_pipe_iostream_big_write"
HTTP = "iostream_test.TestIOStreamWebHTTP.test_connection_closed"
SERVER = "tcpserver_test.TCPServerTest.test_stop_twice"
CLIENT = "tcpclient_test.TCPClientTest.test_connect_ipv4_ipv4"
CHILD = "tcpserver_test.TestMultiprocess.test_listen_single"
FORKS = "tcpserver_test.TestMultiprocess.test_add_sockets"
TLS = "iostream_test.TestIOStreamSSL.test_write_zero_bytes"

OURS = Seen({"IOStream"}, set())
THEIRS = Seen(set(), {"IOStream"})
BOTH = Seen({"IOStream"}, {"IOStream"})
NOTHING = Seen(set(), set())


def run(*names: str, sabotage: str = "") -> tuple[int, str]:
    """The exit code and the output of a run of these tests, with ``sabotage`` done before."""
    code = f"import sys; from tests.conformance import runner; {sabotage}\nsys.exit(runner.main(sys.argv[1:]))"
    done = subprocess.run([sys.executable, "-c", code, *names], cwd=PROJECT, capture_output=True, text=True, timeout=60)
    assert not done.stderr
    return done.returncode, done.stdout


def test_a_run_on_our_classes_passes_and_ends_with_the_counts() -> None:
    status, output = run(STREAMS, PIPES, HTTP, SERVER, CLIENT, CHILD, FORKS, TLS)
    assert output.splitlines()[-1] == "8 passed, 0 failed, 0 skipped"
    assert status == 0


def test_a_run_without_our_classes_fails() -> None:
    status, output = run(STREAMS, PIPES, HTTP, SERVER, CLIENT, sabotage="runner.install = lambda: None")
    assert output.splitlines()[-1] == "0 passed, 5 failed, 0 skipped"
    assert "Tornado's own IOStream ran in place of ours" in output
    assert "Tornado's own PipeIOStream ran in place of ours" in output
    assert "Tornado's own TCPServer ran in place of ours" in output
    assert "Tornado's own IOStream, TCPClient, TestTCPServer ran in place of ours" in output
    assert status == 1


def test_a_run_without_our_classes_in_child_processes_fails() -> None:
    status, output = run(STREAMS, CHILD, FORKS, sabotage="runner.prepare_children = lambda report: None")
    assert output.splitlines()[-1] == "1 passed, 2 failed, 0 skipped"
    assert f"FAILED {CHILD}\n    It passed, but no stream, client or server of ours was made" in output
    assert f"FAILED {FORKS}\n    It passed, but no stream, client or server of ours was made" in output
    assert status == 1


def test_a_run_that_cannot_see_which_classes_are_made_fails() -> None:
    status, output = run(STREAMS, SERVER, sabotage="runner.Witness.watch = lambda self: None")
    assert output.splitlines()[-1] == "0 passed, 2 failed, 0 skipped"
    assert status == 1


def test_a_run_of_no_tests_fails() -> None:
    status, output = run("no_such_test")
    assert output.splitlines()[-1] == "0 passed, 0 failed, 0 skipped"
    assert status == 1


def test_a_test_passes_only_if_our_classes_ran_and_none_of_tornados() -> None:
    assert judge(STREAMS, "", None, OURS) == Verdict(STREAMS, "passed")
    assert judge(STREAMS, "it broke", None, OURS) == Verdict(STREAMS, "failed", "it broke")
    assert judge(STREAMS, "", "not on this system", NOTHING) == Verdict(STREAMS, "skipped", "not on this system")
    for seen in (THEIRS, BOTH, NOTHING):
        assert judge(STREAMS, "", None, seen).kind == "failed"


def test_an_exception_that_passes_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(expectations.CANNOT_PASS, STREAMS, "because")
    assert judge(STREAMS, "it broke", None, OURS) == Verdict(STREAMS, "excepted", "because")
    assert judge(STREAMS, "", None, THEIRS) == Verdict(STREAMS, "excepted", "because")
    assert judge(STREAMS, "", None, OURS).kind == "failed"


def test_a_vacuous_test_that_touches_our_classes_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(expectations.VACUOUS, STREAMS, "because")
    assert judge(STREAMS, "", None, NOTHING) == Verdict(STREAMS, "vacuous", "because")
    assert judge(STREAMS, "it broke", None, NOTHING).kind == "failed"
    assert judge(STREAMS, "", None, OURS).kind == "failed"
    assert judge(STREAMS, "", None, THEIRS).kind == "failed"


def test_a_class_may_be_listed_as_vacuous_and_none_of_its_tests_touches_our_classes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(expectations.VACUOUS, STREAMS.rpartition(".")[0], "because")
    assert judge(STREAMS, "", None, NOTHING) == Verdict(STREAMS, "vacuous", "because")
    assert judge(STREAMS, "", None, OURS).kind == "failed"
    assert judge(PIPES, "", None, NOTHING).kind == "failed"


def test_what_a_test_gets_done_in_a_turn_of_the_hub_matters_to_none_that_is_listed_for_it() -> None:
    status, output = run(*expectations.UNHURRIED, sabotage="runner.hub.SLICE = 1e-6")
    assert output.splitlines()[-1] == f"{len(expectations.UNHURRIED)} passed, 0 failed, 0 skipped"
    assert status == 0
    hurried = "runner.hub.SLICE = 1e-6; runner.expectations.UNHURRIED.clear()"
    assert run(*expectations.UNHURRIED, sabotage=hurried)[0] == 1


def test_there_are_no_more_than_six_exceptions_and_none_of_http() -> None:
    assert len(expectations.CANNOT_PASS) <= 6
    assert [name for name in expectations.CANNOT_PASS if not name.startswith("iostream_test.")] == []
    assert len(expectations.UNHURRIED) <= 1
