"""`Settings`: each value and text, what is refused, and the way to a worker and back."""

import dataclasses
import json
import math
import os
import pwd
from typing import Any

import pytest

from iostreamsrv import Keepalive, OptionError, ServerOptions, TCPServer
from iostreamsrv.options import NAMES as OPTIONS
from iostreamsrv.options import UNLIMITED
from iostreamsrv.supervisor.binds import Bind
from iostreamsrv.supervisor.children import ROWS
from iostreamsrv.supervisor.settings import CHECKS, MAX_ID, NAMES, Settings, cores
from iostreamsrv.supervisor.values import OPTION_READERS


def made(**values: Any) -> Settings:
    return Settings.of({"target": "chat:Chat", **values})


def problem(**values: Any) -> str:
    with pytest.raises(OptionError) as caught:
        made(**values)
    return str(caught.value)


def test_every_setting_has_its_check_and_every_option_its_reader() -> None:
    assert set(CHECKS) == set(NAMES)
    assert set(OPTION_READERS) == set(OPTIONS)


def test_the_defaults_are_one_worker_on_loopback() -> None:
    settings = Settings(target="chat:Chat")
    assert settings.binds == (Bind.parse("127.0.0.1:8888"),)
    assert (settings.workers, settings.options, settings.drain_timeout) == (1, {}, ...)
    assert (settings.uid, settings.gid) == (None, None)


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        made().workers = 2  # type: ignore[misc]


# ---- texts

LIMITS = ["retire_timeout", "worker_lifetime", "hang_timeout", "drain_timeout"]
DURATIONS = [*LIMITS, "kill_timeout", "ready_timeout"]


@pytest.mark.parametrize(
    "text, seconds",
    [("10", 10), ("0.5", 0.5), ("10s", 10), ("500ms", 0.5), ("5m", 300), ("1h", 3600), ("7d", 604800), (" 5 m ", 300)],
)
@pytest.mark.parametrize("name", DURATIONS)
def test_a_duration_may_have_a_unit(name: str, text: str, seconds: float) -> None:
    assert getattr(made(**{name: text}), name) == seconds
    assert getattr(made(**{name: seconds}), name) == seconds


@pytest.mark.parametrize("value", ["", "soon", "5 minutes", "1h30m", "1e3", "nan", "inf", "-", "٣"])
@pytest.mark.parametrize("name", DURATIONS)
def test_what_is_no_duration_is_named(name: str, value: str) -> None:
    text = problem(**{name: value})
    assert text.startswith(f'{name}={value!r}: must be a duration, such as 10, "10s", "5m" or "1h"')
    assert text.endswith(', or "none"') == (name in LIMITS)


@pytest.mark.parametrize("value", [0, -1, math.inf, True, [5], "0", "-5s"])
@pytest.mark.parametrize("name", DURATIONS)
def test_a_duration_is_above_0_and_has_an_end(name: str, value: Any) -> None:
    assert "must be a number of seconds above 0" in problem(**{name: value})


FILES = ["tls_cert", "tls_key", "pid_file", "access_log", "control"]


@pytest.mark.parametrize("name", [*LIMITS, *FILES, "worker_max_rss", "worker_max_accepted", "user"])
def test_none_is_for_no_limit_and_for_nothing(name: str) -> None:
    assert getattr(made(**{name: "none"}), name) is None
    assert getattr(made(**{name: None}), name) is None


@pytest.mark.parametrize("name", ["kill_timeout", "ready_timeout"])
def test_some_limits_must_be(name: str) -> None:
    for nothing in None, "none":
        assert problem(**{name: nothing}).startswith(f"{name}={nothing!r}: must be")


@pytest.mark.parametrize(
    "text, size",
    [("4096", 4096), ("64K", 65536), ("512M", 1 << 29), ("2G", 1 << 31), ("1.5GiB", 3 << 29), ("512 mb", 1 << 29)],
)
def test_a_size_may_have_a_unit(text: str, size: int) -> None:
    assert made(worker_max_rss=text).worker_max_rss == size
    assert made(options={"max_buffer_size": text}).options == {"max_buffer_size": size}


@pytest.mark.parametrize("value", ["", "much", "5X", "1,5G", "inf", 2.5, 0, -1, True])
def test_what_is_no_size_is_named(value: Any) -> None:
    assert problem(worker_max_rss=value).startswith("worker_max_rss=")


@pytest.mark.parametrize("value", ["", "x", "1.5", "0", 0, 2.5, True, "inf"])
def test_what_is_no_count_is_named(value: Any) -> None:
    assert problem(worker_max_accepted=value).startswith("worker_max_accepted=")
    assert made(worker_max_accepted="1000").worker_max_accepted == 1000


@pytest.mark.parametrize("value, share", [("0.25", 0.25), (0, 0), ("1", 1)])
def test_jitter_is_a_share(value: Any, share: float) -> None:
    assert made(jitter=value).jitter == share
    for wrong in "x", 1.5, -0.1, True, None:
        assert problem(jitter=wrong).startswith(f"jitter={wrong!r}: must be a number")


@pytest.mark.parametrize("text, value", [("yes", True), ("ON", True), ("1", True), ("false", False), ("off", False)])
def test_reload_is_a_flag(text: str, value: bool) -> None:
    assert made(reload=text).reload is value
    assert problem(reload="maybe") == "reload='maybe': must be true or false"
    assert problem(reload=1) == "reload=1: must be True or False"


def test_there_is_a_limit_of_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert made(workers=128).workers == 128
    assert "from 1 to 128" in problem(workers=129)
    monkeypatch.setattr("iostreamsrv.supervisor.settings.cores", lambda: 500)
    assert made(workers="auto").workers == 128
    assert ROWS >= 2 * 128


def test_workers_are_a_number_or_one_for_each_core() -> None:
    assert made(workers="4").workers == made(workers=4).workers == 4
    assert made(workers="auto").workers == cores() >= 1
    for wrong in 0, -1, "0", "1025", True, 1.5, None:
        assert problem(workers=wrong).startswith("workers=")
    assert problem(workers="many") == "workers='many': must be a number of processes, or \"auto\": one for each core"


def test_auto_counts_the_cores_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    if hasattr(os, "process_cpu_count"):
        monkeypatch.setattr(os, "process_cpu_count", lambda: 3)
    else:
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 5, 7})
    assert made(workers="auto").workers == 3


# ---- target


@pytest.mark.parametrize("target", ["chat:Chat", "my.chat:Chat", "chat:Servers.chat"])
def test_a_target_is_a_module_and_a_name(target: str) -> None:
    assert made(target=target).target == target


@pytest.mark.parametrize(
    "target, hint",
    [
        (None, "what is to be served?"),
        ("", "what is to be served?"),
        ("chat", 'has no ":": write "chat:Target"'),
        ("my.chat", 'has no ":": write "my.chat:Target", or "my:chat"'),
        ("chat.py", 'is the path of a file: write the name of a module, "chat:Target"'),
        ("./my/chat.py:Chat", 'is the path of a file: write the name of a module, "my.chat:Chat"'),
        ("chat:", 'must be "module:Target"'),
        ("chat:Chat()", 'must be "module:Target"'),
        ("a:b:c", 'must be "module:Target"'),
        (5, "what is to be served?"),
    ],
)
def test_what_is_no_target_is_named_with_what_to_write(target: Any, hint: str) -> None:
    text = problem(target=target)
    assert text.startswith(f"target={target!r}: {hint}")
    assert "\n" not in text


# ---- places


def test_binds_are_texts_or_made_already() -> None:
    both = Bind.parse(":80"), Bind.parse("unix:/run/x")
    for given in [":80", "unix:/run/x"], both, [both[0], "unix:/run/x"]:
        assert made(binds=given).binds == both
    assert made(binds=":80").binds == both[:1]


@pytest.mark.parametrize("given", [[":80", ":80"], [], "nowhere", [5], 5, None])
def test_binds_that_cannot_be_are_refused(given: Any) -> None:
    assert problem(binds=given).startswith("bind=")


# ---- options of the server


@pytest.mark.parametrize(
    "name, text, value",
    [
        ("idle_timeout", "5m", 300.0),
        ("idle_timeout", "none", None),
        ("read_chunk_size", "128K", 131072),
        ("max_buffer_size", "inf", UNLIMITED),
        ("cork", "off", False),
        ("max_connections", "1000", 1000),
        ("max_connections", "inf", UNLIMITED),
        ("max_connections", "none", None),
        ("when_full", "reject", "reject"),
        ("min_rate", "240", 240.0),
        ("linger", "0", 0.0),
        ("min_rate_window", "10s", 10.0),
        ("send_buffer_size", "64K", 65536),
        ("keepalive", "no", None),
        ("keepalive", "none", None),
        ("keepalive", "true", Keepalive()),
        ("keepalive", "20,5, 3", Keepalive(20, 5, 3)),
        ("proxy_protocol", "10.0.0.0/8, unix", ["10.0.0.0/8", "unix"]),
    ],
)
def test_an_option_is_read_as_what_it_is(name: str, text: str, value: object) -> None:
    settings = made(options={name: text})
    assert settings.options == {name: value}
    assert made(options={name: value}).options == {name: value}
    assert settings.options == {name: getattr(ServerOptions.of(settings.options), name)}
    assert getattr(TCPServer(**settings.options).options, name) == value


@pytest.mark.parametrize(
    "name, value, expected",
    [
        ("idle_timout", 5, "set='idle_timout': a server has no such option: did you mean 'idle_timeout'?"),
        ("idle_timeout", "x", "idle_timeout='x': must be a duration"),
        ("idle_timeout", [5], "idle_timeout=[5]: must be a number of seconds"),
        ("max_connections", "many", "max_connections='many': must be an integer"),
        ("max_connections", "1.5", "max_connections='1.5': must be an integer"),
        ("cork", "maybe", "cork='maybe': must be true or false"),
        ("when_full", "wiat", "when_full='wiat': must be 'wait', 'reject' or 'evict'"),
        ("keepalive", "60,10", "keepalive='60,10': must be true, false, or idle,interval,probes"),
        ("keepalive", "1", "keepalive='1': must be true, false, or idle,interval,probes"),
        ("keepalive", [0, 1, 1], "keepalive=(0, 1, 1): must be"),
        ("proxy_protocol", "10.0.0.0/99", "proxy_protocol=['10.0.0.0/99']: "),
        ("proxy_protocol", "", "proxy_protocol=[]: must be a list of networks"),
    ],
)
def test_an_option_that_cannot_be_is_named(name: str, value: Any, expected: str) -> None:
    assert problem(options={name: value}).startswith(expected)


def test_options_are_a_mapping() -> None:
    assert problem(options=["cork"]).startswith("options=['cork']: must be options of a server")


def test_the_drain_timeout_is_one_value_wherever_it_was_given() -> None:
    for settings in made(drain_timeout="5s"), made(options={"drain_timeout": 5}):
        assert settings.drain_timeout == settings.options["drain_timeout"] == 5
    for settings in made(drain_timeout=None), made(options={"drain_timeout": "none"}):
        assert settings.drain_timeout is settings.options["drain_timeout"] is None
    assert made(drain_timeout=5, options={"drain_timeout": 5}).drain_timeout == 5
    assert problem(drain_timeout=3, options={"drain_timeout": 5}).startswith("drain_timeout=3.0: is 5.0 as an option")


# ---- files and users


def test_a_key_needs_a_certificate() -> None:
    assert made(tls_cert="cert.pem").tls_key is None
    assert problem(tls_key="key.pem").startswith("tls_key='key.pem': needs tls_cert")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("wrong", ["", "a\0b", 5])
def test_what_is_no_path_is_named(name: str, wrong: Any) -> None:
    assert problem(**{name: wrong}).startswith(f"{name}={wrong!r}: must be the path of a file")


def test_a_user_is_a_name_or_a_number_and_has_a_group() -> None:
    root = made(user="root")
    assert (root.uid, root.gid) == (0, pwd.getpwnam("root").pw_gid)
    by_number = made(user=0, group="0")
    assert (by_number.user, by_number.uid, by_number.gid) == ("0", 0, 0)
    assert made(group=5).gid == 5


def test_a_user_that_the_system_does_not_know_needs_a_group() -> None:
    unknown = next(number for number in range(54321, MAX_ID) if not known(number))
    assert problem(user=unknown).startswith(f"user='{unknown}': the system knows no user of this number")
    settings = made(user=unknown, group=unknown)
    assert (settings.uid, settings.gid) == (unknown, unknown)


def known(number: int) -> bool:
    try:
        pwd.getpwuid(number)
    except KeyError:
        return False
    return True


@pytest.mark.parametrize("name", ["user", "group"])
@pytest.mark.parametrize("wrong", ["no-such-name", "+1", str(MAX_ID + 1), "9" * 30])
def test_a_user_or_group_must_be_there(name: str, wrong: str) -> None:
    assert problem(**{name: wrong}) == f"{name}={wrong!r}: there is no such {name}"


@pytest.mark.parametrize("name", ["user", "group"])
@pytest.mark.parametrize("wrong", ["", -1, 1.5, True, MAX_ID + 1])
def test_a_user_or_group_is_a_name_or_a_number(name: str, wrong: Any) -> None:
    assert problem(**{name: wrong}).startswith(f"{name}={wrong!r}: must be the name or the number of a {name}")


# ---- names, and the way to a worker


def test_the_control_socket_is_in_the_runtime_directory_or_where_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    assert made().control_path is None
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/run/chat:/run/other")
    assert made().control_path == "/run/chat/control.sock"
    assert made(control="none").control_path is None
    assert made(control="c.sock").control_path == "c.sock"


def test_an_unknown_setting_is_named_with_the_nearest() -> None:
    assert problem(wrkers=2) == "wrkers=2: there is no such setting: did you mean 'workers'?"


def test_metrics_are_somewhere_else_than_the_service() -> None:
    assert problem(metrics=":80?").startswith("metrics=")
    assert problem(binds=":80", metrics=":80") == "metrics=':80': is where the service itself listens"
    assert made(metrics="none").metrics is None


def test_an_access_log_is_text_or_json() -> None:
    assert made(access_log="-").access_log_format == "text"
    assert problem(access_log_format="xml") == "access_log_format='xml': must be 'text' or 'json'"


FULL = {
    "binds": [":80?tls=off", "unix:/run/x?mode=0660"],
    "workers": "3",
    "options": {"keepalive": "60,10,6", "max_connections": "inf", "proxy_protocol": "any", "idle_timeout": "1m"},
    "tls_cert": "cert.pem",
    "tls_key": "key.pem",
    "pid_file": "/run/x.pid",
    "metrics": "127.0.0.1:9100",
    "access_log": "-",
    "access_log_format": "json",
    "control": "/run/x.sock",
    "user": "root",
    "group": 5,
    "worker_max_rss": "1G",
    "retire_timeout": "none",
    "reload": True,
}


@pytest.mark.parametrize("values", [{}, FULL, {"drain_timeout": None}, {"drain_timeout": 5}])
def test_settings_are_the_same_after_json(values: dict[str, Any]) -> None:
    settings = made(**values)
    text = json.dumps(settings.to_json(), allow_nan=False)
    assert Settings.from_json(json.loads(text)) == settings


def test_what_is_no_json_of_settings_is_refused() -> None:
    with pytest.raises(OptionError, match=r"^target=None: what is"):
        Settings.from_json({})
    with pytest.raises(OptionError, match=r"^speed=1: there is no such setting: "):
        Settings.from_json({"target": "a:b", "speed": 1})
