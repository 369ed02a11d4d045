"""Values made of tensors are kept while these are what they were, and no longer."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from made_flows import _cache
from made_flows._cache import Stamp, TensorCache
from tests.helpers.forks import hung_children, needs_fork


@pytest.fixture(params=["digest", "copies"])
def compare(request: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of comparing values: with and without the compiled digest."""
    if request.param == "copies":
        monkeypatch.setattr(_cache, "_compiled_digest", lambda: None)
    how: str = request.param
    return how


def _permute(w: Tensor) -> None:
    w.data = w.data.flip(0)


def _swap_rows(w: Tensor) -> None:
    w.data[[0, 1]] = w.data[[1, 0]]


def _negate_row(w: Tensor) -> None:
    w.data[1].neg_()


def _transpose(w: Tensor) -> None:
    w.data = w.data.t()


def _one_bit(w: Tensor) -> None:
    w.data.view(torch.int32)[-1, -1] ^= 1


def _clip(w: Tensor) -> None:
    w.data.clamp_(max=w.data.flatten().kthvalue(int(0.999 * w.numel())).values.item())


def _prune(w: Tensor) -> None:
    w.data[w.data.abs() <= w.data.abs().flatten().kthvalue(max(1, w.numel() // 1000)).values] = 0


def _numpy(w: Tensor) -> None:
    w.detach().numpy()[0, 0] += 1


def _resize_storage(w: Tensor) -> None:
    storage, values = w.untyped_storage(), w.detach().clone()
    storage.resize_(0)
    storage.resize_(values.numel() * 4)
    w.data.copy_(values + 1)


def _retype(w: Tensor) -> None:
    w.data = w.data.double()


def _reinterpret(w: Tensor) -> None:
    w.data = w.data.view(torch.int32)


def _reshape(w: Tensor) -> None:
    w.data = w.data.view(-1, 2 * w.shape[1])


def _shorten(w: Tensor) -> None:
    w.data = w.data[:-1]


def _shift(w: Tensor) -> None:
    w.data = torch.cat([torch.randn(1), w.data.flatten()])[1:].view(w.shape)


CHANGES: dict[str, Callable[[Tensor], Any]] = {
    "b.mul_(-1)": lambda w: w.data.mul_(-1),
    "W.mul_(2)": lambda w: w.data.mul_(2),
    "a row negated": _negate_row,
    "rows swapped": _swap_rows,
    "rows turned round": _permute,
    "transposed": _transpose,
    "one bit": _one_bit,
    "clipped, 0.1 %": _clip,
    "pruned, 0.1 %": _prune,
    "through NumPy": _numpy,
    "storage resized": _resize_storage,
    "another dtype": _retype,
    "other numbers of the same bits": _reinterpret,
    "another shape": _reshape,
    "fewer rows": _shorten,
    "another place": _shift,
    "in place": lambda w: w.add_(1),
}


@pytest.mark.parametrize("size", [2, 8, 64, 256])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_is_noticed_every_time(change: Any, size: int, compare: str) -> None:
    for seed in range(100 if compare == "digest" else 5):
        weight = torch.randn(size, size, generator=torch.Generator().manual_seed(seed))
        stamp = Stamp.of([torch.ones(3), weight])
        other = Stamp.of([weight])
        assert stamp is not None
        assert other is not None
        assert other.holds([weight])
        change(weight)
        assert not other.holds([weight])


@pytest.mark.parametrize("tensor", {
    "rows": torch.randn(4, 3), "scalar": torch.tensor(1.0), "empty": torch.zeros(0, 3),
    "columns": torch.randn(4, 7)[:, 2:5], "transposed": torch.randn(4, 3).t(),
    "expanded": torch.randn(1, 3).expand(4, 3), "every other": torch.randn(4, 6)[:, ::2],
    "bool": torch.ones(7, dtype=torch.bool), "integers": torch.arange(5),
    "bfloat16": torch.randn(5, 3).bfloat16(), "complex": torch.randn(3, dtype=torch.complex128),
    "NaN": torch.tensor([torch.nan, 1.0]), "offset": torch.randn(30)[3:],
    "block": torch.randn(4, 5, 6)[:, 1:3, 2:4],
}.values())  # fmt: skip
def test_any_layout(tensor: Tensor, compare: str) -> None:
    stamp = Stamp.of([tensor])
    assert stamp is not None
    assert stamp.holds([tensor])
    for place in range(tensor.numel()):
        index = torch.unravel_index(torch.tensor(place), tensor.shape)
        before = tensor.data[index].clone()
        tensor.data[index] = ~before if tensor.dtype is torch.bool else -before + 7
        assert not stamp.holds([tensor])
        tensor.data[index] = before
        assert stamp.holds([tensor]) or torch.equal(tensor, tensor)  # NaN lost its payload
    assert not stamp.holds([tensor.clone()])


def test_numbers_around_a_layout_do_not_count(compare: str) -> None:
    whole = torch.randn(5, 8)
    columns = whole.data[:, 2:5]  # its versions are others
    stamp = Stamp.of([columns])
    assert stamp is not None
    whole[:, :2] += 1
    whole[:, 5:] += 1
    assert stamp.holds([columns])
    whole[4, 4] += 1
    assert not stamp.holds([columns])


def test_facts() -> None:
    weight = torch.randn(3)
    stamp = Stamp.of([weight], ("training", 3))
    assert stamp is not None
    assert stamp.holds([weight], ("training", 3))
    assert not stamp.holds([weight], ("training", 4))
    assert not stamp.holds([weight])
    assert not stamp.holds([weight, weight], ("training", 3))


def _vmapped(use: Callable[[Tensor], None]) -> None:
    def each(x: Tensor) -> Tensor:
        use(x)
        return x

    torch.func.vmap(each)(torch.ones(2, 3))


def _graded(use: Callable[[Tensor], None]) -> None:
    def each(x: Tensor) -> Tensor:
        use(x)
        return x.sum()

    torch.func.grad(each)(torch.ones(3))


def _fake(use: Callable[[Tensor], None]) -> None:
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode():
        use(torch.ones(3))


STAND_INS: dict[str, Callable[[Callable[[Tensor], None]], None]] = {
    "vmap": _vmapped,
    "grad": _graded,
    "fake": _fake,
    "meta": lambda use: use(torch.ones(3, device="meta")),
    "sparse": lambda use: use(torch.eye(3).to_sparse()),
    "released": lambda use: use(_released()),
}


def _released() -> Tensor:
    weight = torch.ones(3)
    weight.untyped_storage().resize_(0)
    return weight


@pytest.mark.parametrize("give", STAND_INS.values(), ids=STAND_INS)
def test_nothing_is_kept_of_tensors_that_cannot_be_looked_at(give: Any, compare: str) -> None:
    cache: TensorCache[int] = TensorCache()

    def use(x: Tensor) -> None:
        assert [cache.get(None, [x], iter([1, 2]).__next__) for _ in range(2)] == [1, 1]

    give(use)
    assert len(cache) == 0


def test_copies_of_a_stamp_say_no() -> None:
    weight = torch.randn(3)
    stamp = Stamp.of([weight])
    for other in (copy.deepcopy(stamp), copy.copy(stamp), pickle.loads(pickle.dumps(stamp))):
        assert not other.holds([weight])
        assert not other.holds([])


# ---------------------------------------------------------------------- what is kept


def _made(cache: TensorCache[Any], key: Any, *tensors: Tensor) -> bool:
    """Whether a value is made anew."""
    made: list[int] = []
    cache.get(key, tensors, lambda: made.append(1))
    return bool(made)


def test_a_value_is_made_once(compare: str) -> None:
    cache: TensorCache[None] = TensorCache()
    a, b = torch.randn(3), nn.Parameter(torch.randn(3))
    assert _made(cache, "k", a, b)
    assert not _made(cache, "k", a, b)
    assert _made(cache, "l", a, b)
    assert _made(cache, "k", b, a)
    assert _made(cache, "k", a)
    assert not _made(cache, "k", a, b)


def test_the_value_not_used_for_longest_goes_first() -> None:
    cache: TensorCache[None] = TensorCache(size=3)
    tensors = [torch.randn(2) for _ in range(4)]
    for tensor in tensors[:3]:
        _made(cache, None, tensor)
    assert not _made(cache, None, tensors[0])
    assert _made(cache, None, tensors[3])
    assert len(cache) == 3
    assert not _made(cache, None, tensors[0])
    assert _made(cache, None, tensors[1])


def test_values_go_with_their_tensors() -> None:
    class Value:
        pass

    cache: TensorCache[Value] = TensorCache()
    kept, tensor = torch.randn(2), torch.randn(2)
    value = weakref.ref(cache.get(None, [kept, tensor], Value))
    assert value() is not None
    del tensor
    assert value() is None
    assert len(cache) == 0


def test_a_cache_goes_with_its_values() -> None:
    cache: TensorCache[Any] = TensorCache()
    tensor = torch.randn(2)
    cache.get(None, [tensor], lambda: None)
    gone = weakref.ref(cache)
    del cache
    gc.collect()
    assert gone() is None


def test_copies_start_empty() -> None:
    cache: TensorCache[Any] = TensorCache(size=5)
    tensor = torch.randn(2)
    cache.get(None, [tensor], threading.Lock)  # can be neither copied nor pickled
    for other in (copy.deepcopy(cache), copy.copy(cache), pickle.loads(pickle.dumps(cache))):
        assert (len(other), other.size) == (0, 5)


def test_a_change_while_the_value_is_made_makes_it_anew(compare: str) -> None:
    cache: TensorCache[float] = TensorCache()
    tensor = torch.ones(2)

    def make() -> float:
        before = float(tensor.sum())
        tensor.data.add_(1)
        return before

    assert cache.get(None, [tensor], make) == 2
    assert cache.get(None, [tensor], lambda: float(tensor.sum())) == 4


def test_a_failure_is_not_kept() -> None:
    cache: TensorCache[int] = TensorCache()
    tensor = torch.ones(2)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            cache.get(None, [tensor], lambda: 1 // 0)
    assert cache.get(None, [tensor], lambda: 1) == 1


def test_what_is_made_in_inference_mode_can_be_used_outside() -> None:
    cache: TensorCache[Tensor] = TensorCache()
    weight, x = torch.randn(3), torch.randn(3, requires_grad=True)
    with torch.inference_mode():
        inside = cache.get(None, [weight], lambda: weight * 2)
        inside.sum()
    outside = cache.get(None, [weight], lambda: weight * 3)
    assert outside is inside
    assert not outside.is_inference()
    assert not outside.requires_grad
    (x * outside).sum().backward()


def test_what_is_kept_carries_no_gradient() -> None:
    cache: TensorCache[Tensor] = TensorCache()
    weight = nn.Parameter(torch.randn(3))
    assert not cache.get(None, [weight], lambda: weight * 2).requires_grad


def test_what_is_made_of_tensors_of_inference_mode(compare: str) -> None:
    cache: TensorCache[Tensor] = TensorCache()
    with torch.inference_mode():
        weight = torch.randn(3)
        first = cache.get(None, [weight], lambda: weight * 2)
        assert cache.get(None, [weight], lambda: weight * 3) is first
        weight.add_(1)  # no version counts this
        assert torch.equal(cache.get(None, [weight], lambda: weight * 2), weight * 2)
    assert torch.equal(cache.get(None, [weight], lambda: weight * 2), weight * 2)


def test_what_is_made_under_autocast_can_be_used_outside() -> None:
    cache: TensorCache[Tensor] = TensorCache()
    weight = torch.randn(3, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert cache.get(None, [weight], lambda: weight @ weight).dtype == torch.float32


def test_under_a_trace_versions_are_compared() -> None:
    cache: TensorCache[int] = TensorCache()
    weight = torch.ones(3)
    values: list[int] = []

    def traced(x: Tensor) -> Tensor:
        values.append(cache.get(None, [weight], lambda: len(values)))
        values.append(cache.get(None, [weight], lambda: len(values)))
        with torch.no_grad():
            weight.add_(1)
        values.append(cache.get(None, [weight], lambda: len(values)))
        return x + 1

    torch.jit.trace(traced, torch.ones(2), check_trace=False)
    assert values == [0, 0, 2]


# ---------------------------------------------------------------------- threads and forks


def test_threads() -> None:
    cache: TensorCache[float] = TensorCache(size=4)
    tensors = [torch.full((100,), float(i)) for i in range(8)]
    wrong: list[Any] = []

    def run(seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for place in torch.randint(8, (1500,), generator=generator).tolist():
            tensor = tensors[place] if place else torch.zeros(100)  # one that dies
            value = cache.get(None, [tensor], lambda tensor=tensor: float(tensor[0]))
            if value != place:
                wrong.append((value, place))

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(cache) <= 4


_FORKS = """
from made_flows._cache import TensorCache
cache, tensors = TensorCache(size=3), [torch.randn(20) for _ in range(6)]

def once():
    for tensor in tensors:
        cache.get(None, [tensor], lambda: [1])

def under_load():
    once()
    cache.get(None, [torch.randn(20)], lambda: [1])
"""


@needs_fork
def test_children_that_are_forked_under_load_do_not_hang() -> None:
    assert hung_children(_FORKS, threads=4, timeout=300) == 0
