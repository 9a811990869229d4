"""What a seed stands for."""

import random
from dataclasses import dataclass
from typing import Any

from .protocol import NEEDS_COROUTINE

COROUTINES = ("lines", "framing", "match", "parts")
"""Styles whose handlers are coroutines that read requests."""

STYLES = (*COROUTINES, "callbacks", "coroutine callbacks", "queue", "gateway")

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
}
"""The characters of clients, and how often each is drawn."""

ONLY_WITH_COROUTINES = frozenset({"quitting", "uploading", "downloading", "leaving_reading", "watching"})


@dataclass(frozen=True)
class Scenario:
    """What is simulated.

    :ivar faults: keywords of `Faults`.
    :ivar options: keywords of the server.
    :ivar shutdown_at: seconds.
    """

    seed: int
    style: str
    tls: bool
    proxied: bool
    options: dict[str, Any]
    characters: tuple[str, ...]
    faults: dict[str, Any]
    shutdown_at: float

    @property
    def coroutines(self) -> bool:
        """Whether the handlers know all kinds of requests."""
        return self.style in COROUTINES

    def knows(self, kind: bytes) -> bool:
        """Whether a request of this kind is more than an echo."""
        return self.coroutines or kind not in NEEDS_COROUTINE

    def __str__(self) -> str:
        over = "".join(f" {name}" for name in ("tls", "proxied") if getattr(self, name))
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
    known = [each for each in CHARACTERS if style in COROUTINES or each not in ONLY_WITH_COROUTINES]
    weights = [CHARACTERS[each] for each in known]
    characters = tuple(chance.choices(known, weights, k=chance.randint(3, 8)))
    return Scenario(
        seed,
        style,
        tls=chance.random() < 0.3,
        proxied=chance.random() < 0.2,
        options=_options(chance, len(characters)),
        characters=characters,
        faults=_faults(chance),
        shutdown_at=chance.choice([1.0, 5.0, 20.0, 70.0, 120.0]) * (0.5 + chance.random()),
    )


def _options(chance: random.Random, clients: int) -> dict[str, Any]:
    options: dict[str, Any] = {"drain_timeout": chance.choice([2.0, 15.0]), "write_timeout": chance.choice([3.0, 30.0])}
    choices: dict[str, list[Any]] = {
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
        "cork": [False],
        "send_buffer_size": [4096],
        "receive_buffer_size": [4096],
        "linger": [0.5],
    }
    for name, values in choices.items():
        if chance.random() < 0.35:
            options[name] = chance.choice(values)
    return options


FAULTS: tuple[dict[str, Any], ...] = (
    {"rst": 0.01, "most": 5},
    {"partition": 0.01, "partition_time": (0.1, 3.0), "most": 4},
    {"stop": 0.01, "stop_time": (0.1, 2.0), "most": 6},
    {"accept": 0.2, "most": 10},
    {"recv": 0.02, "most": 5},
    {"send": 0.02, "most": 5},
    {"descriptors": 24},
)


def _faults(chance: random.Random) -> dict[str, Any]:
    faults: dict[str, Any] = {"delay": chance.choice([0.0005, (0, 0.01), (0, 0.2)]), "cut": chance.choice([0, 0.1, 1])}
    if chance.random() < 0.4:
        faults |= chance.choice(FAULTS)
    return faults
