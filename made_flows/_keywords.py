"""Keywords that a function does not have: errors name the nearest one that it has."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

_SYNONYMS = {
    "bins": "bijection", "cond_dim": "context", "context_dim": "context", "direction": "reads",
    "epochs": "max_epochs", "flows": "transforms", "hidden": "hidden_features",
    "hidden_dim": "hidden_features", "input_dim": "features", "lr": "learning_rate",
    "n_components": "components", "n_flows": "transforms", "num_bins": "bijection",
    "num_layers": "transforms",
}  # fmt: skip
"""What other libraries call an argument, where the names are not alike."""


def check_keywords(name: str, signature: inspect.Signature, given: Iterable[str]) -> None:
    """Raise a TypeError for a keyword that a function lacks, with the nearest one that it has."""
    kinds = [parameter.kind for parameter in signature.parameters.values()]
    if inspect.Parameter.VAR_KEYWORD in kinds:
        return
    known = [word for word in signature.parameters if word != "self"]
    for word in given:
        if word not in known:
            other = _SYNONYMS.get(word)
            near = [other] if other in known else get_close_matches(word, known, 1)
            hint = f"Did you mean {near[0]}?" if near else f"It takes {', '.join(known)}"
            raise TypeError(f"Expected keywords that {name} takes; got {word}. {hint}")


def helpful(function: Callable[P, R], name: str | None = None) -> Callable[P, R]:
    """Let a call with a keyword that a function lacks name the nearest one that it has.

    So does a keyword that the TypedDict of a ``**options: Unpack[...]`` lacks.
    """
    signature = _unpacked(function)
    name = name or function.__qualname__.removesuffix(".__init__")

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            signature.bind(*args, **kwargs)
        except TypeError:
            check_keywords(name, signature, kwargs)
        return function(*args, **kwargs)

    call.__signature__ = signature  # type: ignore[attr-defined]
    return call


class _Chosen:
    """Stands in a signature for the default of a keyword that is passed on."""

    def __repr__(self) -> str:
        return "..."


def _unpacked(function: Callable[..., Any]) -> inspect.Signature:
    """Return a function's signature with the words of a TypedDict in place of its ``**options``."""
    signature = inspect.signature(function)
    *others, last = signature.parameters.values()
    if last.kind is not last.VAR_KEYWORD or not str(last.annotation).startswith("Unpack["):
        return signature
    words = inspect.unwrap(function).__globals__[last.annotation[7:-1]].__annotations__
    every = [
        inspect.Parameter(
            word,
            last.KEYWORD_ONLY,
            default=_Chosen(),
            annotation=getattr(kind, "__forward_arg__", kind),
        )
        for word, kind in words.items()
    ]
    return signature.replace(parameters=[*others, *every])
