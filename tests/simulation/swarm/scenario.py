"""What a seed stands for."""

import math
import random
from dataclasses import dataclass
from typing import Any

from .protocol import BROADCAST, LEAVE_READING, NEEDS_COROUTINE

COROUTINES = ("lines", "framing", "match", "parts")
"""Styles whose handlers are coroutines that read requests."""

STYLES = (*COROUTINES, "callbacks", "coroutine callbacks", "queue", "gateway", "http")

CHARACTERS = {
    "honest": 6,
    "thinking": 3,
    "pipelining": 3,
    "half_closing": 4,
    "dripping": 3,
    "sending_slowly": 3,
    "silent": 4,
    "silent_before_its_handler": 2,
    "resetting": 2,
    "not_reading": 2,
    "reading_late": 2,
    "flooding": 1,
    "reconnecting": 2,
    "never_pausing": 2,
    "broadcasting": 2,
    "failing": 2,
    "blocking": 3,
    "quitting": 2,
    "uploading": 3,
    "downloading": 2,
    "leaving_reading": 2,
    "watching": 2,
    "writing_only": 2,
    "garbling": 2,
    "flooding_with_records": 3,
}
"""The characters of clients, and how often each is drawn."""

ONLY_WITH_COROUTINES = frozenset({"quitting", "uploading", "downloading", "leaving_reading", "watching"})
ONLY_WITH_TLS = frozenset({"flooding_with_records"})
NOT_IN_HTTP = frozenset({"leaving_reading", "broadcasting"})


@dataclass(frozen=True)
class Scenario:
    """What is simulated.

    :ivar faults: keywords of `Faults`.
    :ivar options: keywords of the server.
    :ivar shutdown_at: seconds.
    :ivar unix: it is served on a Unix socket.
    :ivar certificates: what happens to the certificate's files at some moment: nothing, "renewed" or "lost".
    """

    seed: int
    style: str
    tls: bool
    proxied: bool
    options: dict[str, Any]
    characters: tuple[str, ...]
    faults: dict[str, Any]
    shutdown_at: float
    unix: bool = False
    certificates: str = ""

    @property
    def coroutines(self) -> bool:
        """Whether the handlers know all kinds of requests."""
        return self.style in COROUTINES

    @property
    def http(self) -> bool:
        """Whether requests are those of HTTP."""
        return self.style == "http"

    def knows(self, kind: bytes) -> bool:
        """Whether a request of this kind is more than an echo."""
        if self.http:
            return kind not in (BROADCAST, LEAVE_READING)
        return self.coroutines or kind not in NEEDS_COROUTINE

    @property
    def faults_strike(self) -> bool:
        """Whether there are faults, besides what the network is like."""
        return not self.faults.keys() <= {"delay", "cut"}

    def values_of(self, option: str) -> list[Any]:
        """What an option of the server is at first, and after it was replaced; None if it is not given."""
        replaced = [each[option] for each in self.faults.get("replacements", ()) if option in each]
        return [self.options.get(option), *replaced]

    def strictest(self, option: str) -> float:
        """The least value of a timeout or limit; inf if it is never given."""
        return min((value for value in self.values_of(option) if value is not None), default=math.inf)

    def loosest(self, option: str) -> float:
        """The largest value of a timeout or limit; inf if there is not always one."""
        return max(math.inf if value is None else value for value in self.values_of(option))

    def limits(self, *options: str) -> bool:
        """Whether one of these limits is in force at some time."""
        return any(self.strictest(each) < math.inf for each in options)

    def __str__(self) -> str:
        over = "".join(f" {name}" for name in ("unix", "tls", "proxied") if getattr(self, name))
        options = " ".join(f"{name}={value}" for name, value in self.options.items())
        faults = " ".join(f"{name}={value}" for name, value in self.faults.items())
        return (
            f"{self.style}{over}; {options}; faults: {faults}; clients: {' '.join(self.characters)}; "
            f"shutdown at {self.shutdown_at:.3f}"
        )


def draw(seed: int) -> Scenario:
    """The scenario of a seed."""
    chance = random.Random(f"{seed}:scenario")
    style = chance.choice(STYLES)
    tls = chance.random() < 0.3
    unknown = set() if tls else set(ONLY_WITH_TLS)
    if style == "http":
        unknown |= NOT_IN_HTTP
    elif style not in COROUTINES:
        unknown |= ONLY_WITH_COROUTINES
    known = [each for each in CHARACTERS if each not in unknown]
    weights = [CHARACTERS[each] for each in known]
    characters = tuple(chance.choices(known, weights, k=chance.randint(3, 8)))
    options = _options(chance, len(characters))
    return Scenario(
        seed,
        style,
        tls=tls,
        proxied=chance.random() < 0.2,
        options=options,
        characters=characters,
        faults=_faults(chance, len(characters)),
        shutdown_at=chance.choice([1.0, 5.0, 20.0, 70.0, 120.0]) * (0.5 + chance.random()),
        certificates=chance.choice(["", "renewed", "lost"]),
        unix=chance.random() < 0.15 and style != "queue",  # its callback knows clients by their addresses
    )


def _options(chance: random.Random, clients: int) -> dict[str, Any]:
    options: dict[str, Any] = {"drain_timeout": chance.choice([2.0, 15.0]), "write_timeout": chance.choice([3.0, 30.0])}
    for name, values in (_replaceable(clients) | FIXED).items():
        if chance.random() < 0.35:
            options[name] = chance.choice(values)
    return options


def _replaceable(clients: int) -> dict[str, list[Any]]:
    """Options that can be replaced on a running server."""
    return {
        "idle_timeout": [2.0, 5.0, 20.0],
        "read_timeout": [4.0, 8.0],
        "min_rate": [100.0],
        "max_buffer_size": [8192],
        "max_write_buffer_size": [65536],
        "max_connections": [clients, max(1, clients // 2)],
        "max_connections_per_ip": [2],
        "when_full": ["wait", "reject", "evict"],
        "handshake_timeout": [2.0],
        "proxy_header_timeout": [2.0],
    }


FIXED: dict[str, list[Any]] = {
    "cork": [False],
    "send_buffer_size": [4096],
    "receive_buffer_size": [4096],
    "linger": [0.5],
}
"""Options that cannot."""

NETWORK: tuple[dict[str, Any], ...] = (
    {"rst": 0.01, "most": 5},
    {"partition": 0.01, "partition_time": (0.1, 3.0), "most": 4},
    {"stop": 0.01, "stop_time": (0.1, 2.0), "most": 6},
    {"accept": 0.2, "most": 10},
    {"recv": 0.02, "most": 5},
    {"send": 0.02, "most": 5},
    {"setsockopt": 0.1, "most": 5},
    {"descriptors": 24},
)
"""What the network and the system do."""

DISTURBANCES: dict[str, int] = {"kick": 3, "cancel": 3, "replace": 8, "reload": 6, "block": 4, "jump": 6, "shutdown": 1}
"""What happens to the process and its servers, and how often at most."""


def _faults(chance: random.Random, clients: int) -> dict[str, Any]:
    faults: dict[str, Any] = {"delay": chance.choice([0.0005, (0, 0.01), (0, 0.2)]), "cut": chance.choice([0, 0.1, 1])}
    if chance.random() < 0.4:
        faults |= chance.choice(NETWORK)
    if chance.random() < 0.4:
        for name in chance.sample(sorted(DISTURBANCES), chance.choice([1, 1, 2])):
            faults[name] = chance.choice([0.002, 0.02])
            faults["most"] = faults.get("most", 0) + DISTURBANCES[name]
        if "block" in faults:
            faults["stop_time"] = (0.1, 2.0)
        if "replace" in faults:
            faults["replacements"] = _replacements(chance, clients)
    return faults


def _replacements(chance: random.Random, clients: int) -> list[dict[str, Any]]:
    choices = _replaceable(clients) | {"drain_timeout": [2.0, 15.0], "write_timeout": [3.0, 30.0]}
    for name in ("idle_timeout", "read_timeout", "min_rate", "max_connections", "max_connections_per_ip"):
        choices[name] = [*choices[name], None]
    return [
        {name: chance.choice(choices[name]) for name in chance.sample(sorted(choices), chance.randint(1, 3))}
        for _ in range(chance.randint(2, 4))
    ]
