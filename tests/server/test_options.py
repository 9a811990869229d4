"""`ServerOptions`: where options come from, what they may be, and what can be replaced while a server runs."""

import dataclasses
import math
import re
from typing import Any

import pytest

from iostreamsrv import IOStream, OptionError, ServerOptions, TCPServer
from iostreamsrv.options import NAMES, REPLACEABLE, UNLIMITED


class Silent(TCPServer):
    async def handle_stream(self, stream: IOStream, address: Any) -> None:
        await stream.read_until_close()


def named(option: str, value: object) -> str:
    """The beginning of an `OptionError`."""
    return "^" + re.escape(f"{option}={value!r}: ")


# ---- values

TIMEOUTS = [
    "idle_timeout",
    "read_timeout",
    "write_timeout",
    "drain_timeout",
    "handshake_timeout",
    "proxy_header_timeout",
]

NO_DURATION = [
    0,
    -1,
    -0.001,
    math.inf,
    -math.inf,
    math.nan,
    True,
    False,
    "2",
    b"2",
    [2],
    pytest.param(10**400, id="huge"),
]


@pytest.mark.parametrize("value", NO_DURATION)
@pytest.mark.parametrize("option", [*TIMEOUTS, "min_rate_window", "drain_idle", "min_rate"])
def test_a_bad_duration_or_rate_is_named_with_its_value(option: str, value: Any) -> None:
    for kind in (Silent, ServerOptions):
        with pytest.raises(OptionError, match=named(option, value)) as caught:
            kind(**{option: value})
        assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("option", ["min_rate_window", "drain_idle"])
def test_durations_that_must_be_cannot_be_none(option: str) -> None:
    with pytest.raises(OptionError, match=named(option, None)):
        Silent(**{option: None})


@pytest.mark.parametrize("option", [*TIMEOUTS, "min_rate"])
def test_timeouts_can_be_off_or_any_number_above_zero(option: str) -> None:
    for value in (None, 1, 0.001, 1e9):
        assert getattr(ServerOptions(**{option: value}), option) == value


@pytest.mark.parametrize("value", [0, -1, 1.5, 2.0, -math.inf, math.nan, True, False, "2", b"2", [2]])
@pytest.mark.parametrize("option", ["max_connections", "max_connections_per_ip"])
def test_a_bad_number_of_connections_is_named_with_its_value(option: str, value: Any) -> None:
    for kind in (Silent, ServerOptions):
        with pytest.raises(OptionError, match=named(option, value)):
            kind(**{option: value})


@pytest.mark.parametrize("option", ["max_connections", "max_connections_per_ip"])
def test_a_number_of_connections_may_be_none_infinite_or_from_one_on(option: str) -> None:
    for value in (None, 1, 10**6):
        assert getattr(ServerOptions(**{option: value}), option) == value
    assert getattr(ServerOptions(**{option: math.inf}), option) == UNLIMITED


@pytest.mark.parametrize("value", ["", "Wait", "drop", b"wait", None, True, 1, ["wait"], ("wait", "evict")])
def test_when_full_is_one_of_three_words(value: Any) -> None:
    for kind in (Silent, ServerOptions):
        with pytest.raises(OptionError, match=named("when_full", value)):
            kind(when_full=value)


def test_the_defaults_are_those_that_are_documented() -> None:
    options = ServerOptions()
    assert (options.max_connections, options.max_connections_per_ip, options.when_full) == (None, None, "wait")
    assert options.timeouts == (None, None, 30.0)
    assert (options.min_rate, options.min_rate_window) == (None, 5.0)
    assert (options.drain_timeout, options.drain_idle) == (15.0, 0.5)


def test_every_option_is_documented() -> None:
    documented = re.findall(r":ivar (\w+):", ServerOptions.__doc__ or "")
    assert documented == list(NAMES)


# ---- where they come from


def test_keywords_go_before_options_and_these_before_the_class() -> None:
    class Own(Silent):
        max_connections = 1
        idle_timeout = 1

    assert (Own().options.max_connections, Own().options.idle_timeout) == (1, 1)
    assert Own(max_connections=3).options.max_connections == 3
    assert Own(max_connections=3).options.idle_timeout == 1
    options = ServerOptions(max_connections=2)
    assert Own(options=options).options == options
    assert Own(options=options, idle_timeout=3).options == ServerOptions(max_connections=2, idle_timeout=3)


def test_a_keyword_of_none_goes_before_the_class_where_none_means_something() -> None:
    class Own(Silent):
        idle_timeout = 1
        max_connections = 2

    options = Own(idle_timeout=None, max_connections=None).options
    assert (options.idle_timeout, options.max_connections) == (None, None)


def test_an_attribute_that_was_meant_to_be_an_option_is_a_warning() -> None:
    class Hasty(Silent):
        max_conections = 5

    with pytest.warns(UserWarning, match="Hasty.max_conections is no option .*'max_connections'") as warned:
        server = Hasty()
    assert warned[0].filename == __file__
    assert server.options.max_connections is None


def test_attributes_of_other_names_are_the_classes_own_affair() -> None:
    class Chatty(Silent):
        tick_interval = 5
        timeout = 3
        rooms = ("lobby",)

    assert Chatty().options == Silent().options


def test_the_nearest_class_that_has_an_attribute_counts() -> None:
    class Base(Silent):
        max_connections = 1
        idle_timeout = 1
        linger = 1

    class Mixin:
        idle_timeout = 2
        read_timeout = 2

    class Own(Mixin, Base):
        linger = 3

    options = Own().options
    assert (options.max_connections, options.idle_timeout, options.read_timeout, options.linger) == (1, 2, 2, 3)


def test_attributes_count_wherever_the_class_has_them_from() -> None:
    class Defaults:
        max_connections = 5

    class Own(Silent, Defaults):
        pass

    assert Own.max_connections == Own().options.max_connections == 5


def test_a_bad_attribute_is_named_when_the_server_is_made() -> None:
    class Own(Silent):
        idle_timeout = -1

    with pytest.raises(OptionError, match=named("idle_timeout", -1)):
        Own()


def test_methods_and_properties_of_that_name_are_no_options() -> None:
    class Own(Silent):
        def linger(self) -> None: ...

        @property
        def idle_timeout(self) -> float:
            return 1.0

    assert Own().options == ServerOptions()


@pytest.mark.parametrize("wrong", [{}, {"cork": True}, ServerOptions, "cork", 1])
def test_options_must_be_server_options(wrong: Any) -> None:
    with pytest.raises(OptionError, match=named("options", wrong)):
        Silent(options=wrong)


def test_options_of_several_servers_are_not_changed_by_one() -> None:
    shared = ServerOptions(idle_timeout=1)
    one, other = Silent(options=shared), Silent(options=shared)
    one.replace_options(idle_timeout=2)
    assert (one.options.idle_timeout, other.options.idle_timeout, shared.idle_timeout) == (2, 1, 1)


SUGGESTIONS = [
    ("max_connection", "max_connections"),
    ("max_connections_per_host", "max_connections_per_ip"),
    ("whenfull", "when_full"),
    ("idle_time_out", "idle_timeout"),
    ("readtimeout", "read_timeout"),
    ("min_rate_windows", "min_rate_window"),
    ("drain_time", "drain_timeout"),
]


@pytest.mark.parametrize("wrong, right", SUGGESTIONS)
def test_an_option_there_is_not_comes_with_a_suggestion(wrong: str, right: str) -> None:
    server = Silent()
    for give in (Silent, server.replace_options):
        with pytest.raises(TypeError, match=f"'{wrong}'.*did you mean '{right}'"):
            give(**{wrong: 1})  # type: ignore[operator]


# ---- replacing them


def test_limits_and_timeouts_can_be_replaced_and_the_rest_stays() -> None:
    server = Silent(cork=False, idle_timeout=1)
    server.replace_options(max_connections=5, idle_timeout=2, when_full="evict", max_buffer_size=None)
    assert server.options == ServerOptions(cork=False, max_connections=5, idle_timeout=2, when_full="evict")
    server.replace_options()
    assert server.options.max_connections == 5


@pytest.mark.parametrize("name", sorted(set(NAMES) - REPLACEABLE))
def test_what_a_listener_or_a_context_was_made_with_cannot_be_replaced(name: str) -> None:
    server = Silent()
    before = server.options
    value = ["10.0.0.0/8"] if name == "proxy_protocol" else getattr(before, name)
    with pytest.raises(OptionError, match=f"^{name}=.*cannot be replaced"):
        server.replace_options(idle_timeout=5, **{name: value})
    assert server.options is before


@pytest.mark.parametrize("wrong", [{"idle_timeout": -1}, {"max_connections": 0}, {"when_full": "no"}, {"cork": False}])
def test_if_one_cannot_be_replaced_none_is(wrong: dict[str, Any]) -> None:
    server = Silent()
    before = server.options
    with pytest.raises(OptionError):
        server.replace_options(read_timeout=5, **wrong)
    assert server.options is before
    with pytest.raises(TypeError):
        server.replace_options(read_timeout=5, redtimeout=5)
    assert server.options is before


def test_options_are_frozen() -> None:
    for name in NAMES:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(Silent().options, name, 1)
