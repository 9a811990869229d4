"""The context for a single connection. One made from a dict is cached for later connections with the same dict."""

import functools
import ssl
import weakref
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .certificates import Certificates, client_context
from .contexts import client_from_dict
from .options import SSLOptions, client_options, files_of, server_options
from .watching import file_state


def context_for_one(ssl_options: SSLOptions | None, server_side: bool) -> ssl.SSLContext:
    """The context for one connection. The one made from a dict is cached until the dict or a file changes. A server's
    `ssl.SSLContext` is checked once.

    :raises CertificateError: see `Certificates` and :func:`client_context`.
    """
    if isinstance(ssl_options, Mapping):
        options = server_options(ssl_options) if server_side else client_options(ssl_options)
        return _cached(_Recipe(server_side, _hashable(options), tuple(map(file_state, files_of(options))), options))
    if not server_side:
        return client_context(ssl_options)
    if ssl_options not in _TRIED:
        _TRIED.add(Certificates(ssl_options).context)  # type: ignore[arg-type]  # it raises for anything else
    assert isinstance(ssl_options, ssl.SSLContext)
    return ssl_options


_TRIED: weakref.WeakSet[ssl.SSLContext] = weakref.WeakSet()
"""Servers' contexts that were checked."""


@dataclass(frozen=True)
class _Recipe:
    """What a context is made from, the key of the cache: equal recipes make equal contexts."""

    server_side: bool
    wanted: Hashable
    files: tuple[Hashable, ...]
    options: dict[str, Any] = field(compare=False, repr=False)


@functools.lru_cache(maxsize=16)
def _cached(recipe: _Recipe) -> ssl.SSLContext:
    return Certificates(recipe.options).context if recipe.server_side else client_from_dict(recipe.options)


def _hashable(value: Any) -> Hashable:
    if isinstance(value, Mapping):
        return tuple(sorted((name, _hashable(each)) for name, each in value.items()))
    if isinstance(value, list):
        return tuple(map(_hashable, value))
    return bytes(value) if isinstance(value, bytearray) else value if isinstance(value, Hashable) else id(value)
