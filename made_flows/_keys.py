"""Modules by number: custom operators take tensors and plain values only."""

from __future__ import annotations

import itertools
import weakref
from typing import Any, ClassVar

from torch import nn


class KeyedModule(nn.Module):
    """A module that a custom operator can be told of by a number.

    Operators take tensors and plain values only. The key stands for the object; copies and
    unpickled objects get keys of their own.
    """

    _keys: ClassVar[itertools.count[int]] = itertools.count()
    _objects: ClassVar[weakref.WeakValueDictionary[int, KeyedModule]] = (
        weakref.WeakValueDictionary()
    )

    def __init__(self) -> None:
        super().__init__()
        self._take_key()

    def _take_key(self) -> None:
        self.key = next(KeyedModule._keys)
        KeyedModule._objects[self.key] = self

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._take_key()

    @staticmethod
    def of_key(key: int) -> Any:
        """Return the living object with a key."""
        return KeyedModule._objects[key]

    @staticmethod
    def living(key: int) -> KeyedModule | None:
        """Return the object with a key, None if it is gone."""
        return KeyedModule._objects.get(key)
