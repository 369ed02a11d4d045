"""Layers of other libraries, read so that their slow direction can be made fast.

Every host has a module of its own, which is imported only when an object of that host is at hand.
It reads the masks of the host's networks, names the elementwise map, and knows which class to mix
into a layer; where it does not know what a layer computes, it leaves the layer alone and says why.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from made_flows.interop.validation import NotUnderstoodError

__all__ = ["HOSTS", "NotUnderstoodError", "find", "host_of"]

HOSTS = ("nflows", "normflows", "pyro", "zuko")
"""The libraries whose layers are known."""


def host_of(module: Any) -> str | None:
    """The library whose class an object's class is or extends; None for this library's own."""
    for kind in type(module).__mro__:
        library, _, rest = kind.__module__.partition(".")
        if library in HOSTS:
            return library
        if library == "made_flows" and not rest.startswith("interop"):
            return None
    return None


def find(module: Any) -> type | None:
    """The class to mix into a host's layer to make it fast, None if nothing is slow in it.

    A :class:`~made_flows.interop.fast_layer.FastLayer` still has to read the layer.

    Raises:
        NotUnderstoodError: for a layer with a slow direction that cannot be made fast, saying why.
    """
    host = host_of(module)
    if host is None:
        return None
    try:
        reader = import_module(f"made_flows.interop.{host}")
    except (ImportError, AttributeError) as error:
        raise NotUnderstoodError(f"this version of {host} is not known ({error})") from None
    mixin: type | None = reader.find(module)
    return mixin
