"""What was made of some tensors, kept while they are what they were, and never longer.

A :class:`Stamp` is what some tensors were at a moment: which they are, where they lie, how often
they were written to, and every bit of what is in them, since writes through ``.data``, NumPy or
another view of the memory count nowhere. A :class:`TensorCache` keeps values under the stamps of
what they were made of. Nothing else in the library decides whether values are still the same.
"""

from __future__ import annotations

import itertools
import operator
import weakref
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from made_flows._torch import is_recorded, is_traced, own_precision

if TYPE_CHECKING:
    from made_flows._digest import Reading

T = TypeVar("T")

_PLAIN = (Tensor, nn.Parameter)
"""Classes of tensors that are what they seem. Others may hold their values elsewhere."""

_LARGE = 2**23
"""Bytes that take longer to read, 0.15 ms, than another thread takes to wake."""

_PIECE = 2**17
"""Bytes that a thread reads at once, of what is large."""

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Stamp:
    """What some tensors were at a moment, for the question whether they still are.

    On the CPU a digest of all bits is compared; what changes several words goes unnoticed only by
    chance, in less than one case in 2^32. Without llvmlite (which makes the digest), on other
    devices and for unusual strides a copy is compared, bit by bit. Only while ``torch.jit.trace``
    or a CUDA graph records are values taken to be what versions say.

    Made by :meth:`of`. It holds no tensor, and looks at the memory of tensors weakly, not at them:
    torch refuses to exchange tensors that are looked at (``torch.utils.swap_tensors``). A copy of a
    stamp, or one that was pickled, says no.

    Attributes:
        facts: what else is to be the same, compared by ``==``.
    """

    __slots__ = ("_forms", "_guard", "_names", "_places", "_references", "_values", "facts")

    def __init__(self) -> None:
        self.facts: Any = None
        self._references: list[weakref.ref[Any]] = []
        self._names: list[int] = []
        self._places: list[Any] | None = None
        self._forms: list[Any] | None = None
        self._guard: Any = None
        self._values: _Values | None = None

    @staticmethod
    def of(
        tensors: Sequence[Tensor],
        facts: Any = None,
        *,
        values: bool = True,
        gone: Callable[[Any], None] | None = None,
    ) -> Stamp | None:
        """Return the stamp of some tensors, None where one cannot tell what they are.

        That is so for the stand-ins of compilers, of ``torch.func`` and of fake or meta tensors,
        for tensors without memory of their own, and while a CUDA graph records.

        Args:
            tensors: the tensors.
            facts: what else counts.
            values: whether values count, and not how often they were written to alone.
            gone: called when one of the tensors, or the memory of one, is gone for good.
        """
        if not all(type(tensor) in _PLAIN and not tensor.is_meta for tensor in tensors):
            return None
        stamp = Stamp()
        try:
            stamp.facts, stamp._places, stamp._forms = facts, _places(tensors), _forms(tensors)
            stamp._guard = _guard(tensors)
            stamp._values = _Values(tensors if values else ())
        except RuntimeError:  # there is no memory to look at
            return None
        stamp._references = [weakref.ref(_owner(tensor), gone) for tensor in tensors]
        stamp._names = [*map(id, tensors)]
        return stamp

    def holds(self, tensors: Sequence[Tensor], facts: Any = None) -> bool:
        """Tell whether these are the same tensors, and what they were."""
        if self._names != [*map(id, tensors)] or self.facts != facts:
            return False
        if not all(map(operator.is_not, map(_FOLLOW, self._references), _NONE)):
            return False  # names are given again
        return self.unchanged(tensors)

    def unchanged(self, tensors: Sequence[Tensor], proofs: list[Proof] | None = None) -> bool:
        """Tell whether its tensors, which the caller has held ever since, are what they were.

        Where there is a list of proofs, values that take long to read are not read: the proof that
        they are the same is added to it. What is computed before it is found to fail is to be
        thrown away.
        """
        values = self._values
        if values is None:
            return False
        try:
            # Values last: they are read at the places that the rest says are still theirs.
            return (
                self._places == _places(tensors)
                and (_agrees(self._guard, tensors) or self._forms == _forms(tensors))
                and values.hold(tensors, proofs)
            )
        except RuntimeError:
            return False

    def __reduce__(self) -> Any:
        return Stamp, ()


def _owner(tensor: Tensor) -> Any:
    """Return what lives as long as a tensor's values: its memory, if it has that for itself."""
    storage = tensor.untyped_storage()
    alone = not is_traced() and storage.nbytes() == tensor.numel() * tensor.element_size()
    return storage if alone else tensor


_FOLLOW: Any = weakref.ref.__call__
_NONE = itertools.repeat(None)
_VERSION = operator.attrgetter("_version")
_FORM = operator.attrgetter("device", "dtype", "shape")
_FORM_TRACED = operator.attrgetter("device", "dtype")  # a trace would record the shape


def _places(tensors: Sequence[Tensor]) -> list[Any]:
    """Say how often each was written to, and where it lies, offsets included."""
    try:
        versions = [*map(_VERSION, tensors)]
    except RuntimeError:  # tensors made in inference mode do not count their changes
        versions = [None if t.is_inference() else t._version for t in tensors]
    return [versions, [*map(Tensor.data_ptr, tensors)]]


def _forms(tensors: Sequence[Tensor]) -> list[Any]:
    """Say how each lies."""
    form = _FORM_TRACED if is_traced() else _FORM
    return [[*map(form, tensors)], [*map(Tensor.stride, tensors)]]


def _guard(tensors: Sequence[Tensor]) -> Any:
    """Return what compares the forms of tensors in one call of torch, None where it cannot.

    Torch's compiler asks it whether what it compiled still holds. It says no for other reasons too
    (another mode, say), so that a no says nothing.
    """
    torch_c: Any = torch._C
    try:
        return torch_c._dynamo.guards.TensorGuards(
            *tensors,
            dynamic_dims_sizes=[list(tensor.shape) for tensor in tensors],
            dynamic_dims_strides=[list(tensor.stride()) for tensor in tensors],
        )
    except Exception:  # another release of torch, whose own this is
        return None


def _agrees(guard: Any, tensors: Sequence[Tensor]) -> bool:
    return guard is not None and not is_traced() and guard.check(*tensors) is True


class Proof:
    """That the values of tensors are what they were: to be read while a kernel believes it.

    It keeps the memory of the tensors, which other threads may drop meanwhile.
    """

    __slots__ = ("_memory", "_values", "_words", "call")

    def __init__(self, values: _Values, tensors: Sequence[Tensor]) -> None:
        self._values = values
        self._memory = [*map(Tensor.untyped_storage, tensors)]
        address, self._words = values.reading.begin()
        self.call = values.reading.function, address
        """The address of a function that reads, in any number of threads, and of its argument."""

    def holds(self) -> bool:
        """Tell whether they are, after all that has not been read was read."""
        return bool(self._values.reading.finish(self._words) == self._values.hashes)


class _Values:
    """The values of some tensors: hashes where they can be read, copies of the others."""

    __slots__ = ("copies", "hashes", "large", "reading")

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.reading: Any = None
        self.hashes = array("q")
        self.copies: list[tuple[int, Tensor]] = []
        self.large = False
        if is_traced():
            return
        digest = _compiled_digest()
        spans: list[tuple[int, int, int, int]] = []
        for place, tensor in enumerate(tensors):
            span = None if digest is None else _span(tensor)
            _expect_memory(tensor)
            if span is not None:
                spans.append(span)
            elif is_recorded(tensor):
                raise RuntimeError("values cannot be read while a graph records")
            else:
                self.copies.append((place, _bits(tensor).clone()))
        if digest is not None and spans:
            self.large = sum(pieces * size for _, pieces, size, _ in spans) >= _LARGE
            parts = itertools.chain(*map(_parts, spans)) if self.large else spans
            self.reading = digest(array("q", itertools.chain(*parts)))
            self.hashes = self.reading.finish()

    def hold(self, tensors: Sequence[Tensor], proofs: list[Proof] | None) -> bool:
        """Tell whether the tensors, which still lie where they lay, have the same values."""
        if self.reading is not None:
            if proofs is not None and self.large and not self.copies:
                proofs.append(Proof(self, tensors))
                return True
            if self.reading.finish() != self.hashes:
                return False
        if not self.copies or is_traced():
            return True
        # All comparisons are asked for before the first answer is waited for.
        pairs = [(copy, tensors[place]) for place, copy in self.copies]
        equal = [(copy == _bits(now)).all() for copy, now in pairs if not is_recorded(now)]
        return all(map(bool, equal))


@lru_cache(maxsize=1)
def _compiled_digest() -> type[Reading] | None:
    try:
        from made_flows._digest import Reading
    except (ImportError, OSError, RuntimeError):  # no compiler, or one that may not compile here
        return None
    return Reading


def _parts(span: tuple[int, int, int, int]) -> Iterator[tuple[int, int, int, int]]:
    """Divide a span into several that threads can share."""
    address, pieces, size, _ = span
    if pieces > 1:
        yield span
        return
    for first in range(0, size, _PIECE):
        yield address + first, 1, min(size - first, _PIECE), 0


def _span(tensor: Tensor) -> tuple[int, int, int, int] | None:
    """Return address, number of pieces, their bytes and distance; None for other layouts."""
    if not tensor.is_cpu:
        return None
    address, size = tensor.data_ptr(), tensor.element_size()
    if tensor.is_contiguous():
        return (address, 1, tensor.numel() * size, 0)
    # Dimensions from the longest step on. The first may have gaps: columns of a matrix, say.
    laid = sorted(zip(tensor.stride(), tensor.shape, strict=True), reverse=True)
    dense = 1
    for step, count in laid[:0:-1]:
        if count > 1 and step != dense:
            return None
        dense *= count
    step, count = laid[0]
    return (address, count, dense * size, step * size)


def _expect_memory(tensor: Tensor) -> None:
    """Raise where a tensor's storage was made smaller than the tensor: reading it is fatal."""
    storage = tensor.untyped_storage()
    steps = zip(tensor.stride(), tensor.shape, strict=True)
    last = sum(step * (count - 1) for step, count in steps)
    end = tensor.data_ptr() + (last + 1) * tensor.element_size()
    if tensor.numel() and end > storage.data_ptr() + storage.nbytes():
        raise RuntimeError("the tensor's storage was made smaller than the tensor")


def _bits(tensor: Tensor) -> Tensor:
    """Read a tensor as integers, equal where all bits are: NaN, and zeros of both signs."""
    kind = _BITS.get(tensor.element_size())
    plain = tensor.detach()
    return plain if kind is None else plain.view(kind)


class _Entry(Generic[T]):
    __slots__ = ("stamp", "used", "value")

    def __init__(self, stamp: Stamp, value: T, used: int) -> None:
        self.stamp, self.value, self.used = stamp, value, used


class TensorCache(Generic[T]):
    """Values made of lists of tensors, each kept while the tensors live and are what they were.

    There is no lock, which a fork could leave locked: single operations on a dictionary are
    atomic, and two threads that make the same value at once both make the right one. A copy, or
    one that was pickled, starts empty.

    Args:
        size: how many values are kept; the one not used for longest goes first. All go with their
            tensors, so that this need not be small.
        proves: whether the user of a value proves it, so that what is in the tensors need not be
            read: to read what is on a GPU is to wait for it.
    """

    def __init__(self, size: int = 256, *, proves: bool = False) -> None:
        self.size, self.proves = size, proves
        self._entries: dict[Any, _Entry[T]] = {}
        self._clock = itertools.count()

    def get(self, key: Any, tensors: Sequence[Tensor], make: Callable[[], T]) -> T:
        """Return the value of these tensors, made anew if any of them changed since it was made.

        Args:
            key: what else the value depends on.
            tensors: what it is made of.
            make: makes it, of nothing else. What it makes must not hold the tensors themselves.
        """
        if torch.compiler.is_compiling():
            return make()
        place = (key, *map(id, tensors))
        entry = self._entries.get(place)
        if entry is not None and entry.stamp.holds(tensors):
            entry.used = next(self._clock)
            return entry.value
        # Before the value: a change meanwhile leaves it outdated, not unnoticed.
        gone = partial(_drop, weakref.ref(self), place)
        stamp = Stamp.of(tensors, values=not self.proves, gone=gone)
        if stamp is None:
            return make()
        with _lasting(tensors):
            value = make()
        self._entries[place] = _Entry(stamp, value, next(self._clock))
        while len(self._entries) > self.size:
            self._drop_oldest()
        return value

    def __len__(self) -> int:
        return len(self._entries)

    def _drop_oldest(self) -> None:
        entries = self._entries.copy()
        oldest = min(entries, key=lambda place: entries[place].used, default=None)
        self._entries.pop(oldest, None)

    def __deepcopy__(self, memo: Any) -> TensorCache[T]:
        return TensorCache(self.size, proves=self.proves)

    def __reduce__(self) -> Any:
        return partial(TensorCache, self.size, proves=self.proves), ()


def _drop(reference: weakref.ref[TensorCache[Any]], place: Any, _: Any) -> None:
    """Drop a value of a cache when one of the tensors that it was made of is gone."""
    cache = reference()
    if cache is not None:
        cache._entries.pop(place, None)


@contextmanager
def _lasting(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Make what lies within usable under all modes that a later call may be under."""
    device = tensors[0].device.type if tensors else "cpu"
    with torch.inference_mode(False), torch.no_grad(), own_precision(device):
        yield
