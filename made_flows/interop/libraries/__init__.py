"""The libraries whose layers are known, one file each; a new library is a new file here.

A file bears the library's name and has a function ``find``: it takes an object and gives the class
to mix into it (:mod:`made_flows.interop.class_swap`), None if nothing is slow in the object, or
raises :class:`~made_flows.nn.validation.NotUnderstoodError`. For a layer that class is a
:class:`~made_flows.interop.fast_layer.FastLayer`, whose ``made_flows_read`` reads the masks of the
layer's network and names its elementwise map. The file is imported only when an object of its
library is at hand.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from typing import Any, cast

from made_flows.nn.validation import NotUnderstoodError

LIBRARIES = tuple(sorted(file.name for file in iter_modules(__path__) if file.name[0] != "_"))
"""Their names."""


_ADAPTER = "pyro.nn.module"
"""Where classes are made that let Pyro see the weights of any module."""


def library_of(layer: Any) -> str | None:
    """Find the library whose class an object's class extends; None for this library's own."""
    for kind in type(layer).__mro__:
        library, _, rest = kind.__module__.partition(".")
        if library in LIBRARIES and kind.__module__ != _ADAPTER:
            return library
        if library == "made_flows" and not rest.startswith("interop"):
            return None
    return None


def find(layer: Any) -> type | None:
    """Find the class that makes an object of a library fast, None if nothing is slow in it.

    A :class:`~made_flows.interop.fast_layer.FastLayer` still has to read the layer.

    Raises:
        NotUnderstoodError: for a layer with a slow direction that cannot be made fast, saying why.
    """
    library = library_of(layer)
    if library is None:
        return None
    try:
        reader = import_module(f"{__name__}.{library}")
    except (ImportError, AttributeError) as error:
        raise NotUnderstoodError(f"this version of {library} is not known ({error})") from None
    return cast(type | None, reader.find(layer))
