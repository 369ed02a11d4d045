"""A model as text and tensors, and back.

The text names the class and the constructor's arguments, and says in what the model differs from
what they make; the tensors are its state. A record is made only of models that come back as they
are: the way back is gone at once, and what comes of it compared.
"""

from __future__ import annotations

import inspect
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from made_flows._checks import expect, shown
from made_flows.nn.activations import make_activation
from made_flows.nn.made import MADE
from made_flows.serialization.arguments import ARGUMENTS, Decoder, Encoder
from made_flows.serialization.comparison import Difference, differences
from made_flows.serialization.sizes import check_sizes

_ROUNDS = 32
"""How deep modules that were replaced may lie in others that were."""


def describe(model: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the text of a model, as what JSON can hold, and its tensors.

    Raises:
        TypeError: for arguments and replaced modules that cannot be written.
        ValueError: for a model that differs in other ways from what its arguments make.
    """
    _expect_values(model)
    encoder = Encoder()
    text = encoder.encode(model, type(model).__name__)
    tensors, aliases = _distinct(model)
    text |= {"training": model.training, "aliases": aliases, "changes": [], "buffers": {}}
    decoder = Decoder(encoder.tensors, encoder.classes)
    with undisturbed(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they were given when the model was made
        try:
            again = decoder.decode({key: text[key] for key in ("class", "arguments")})
        except Exception as error:
            raise ValueError(
                f"Expected model to be one that its arguments make again; got from them: {error}"
            ) from error
        again.train(model.training)
        for _ in range(_ROUNDS):
            found = [d for d in differences(model, again) if d.kind not in ("parameter", "buffer")]
            for difference in found:
                text["changes"].append(_write(difference, encoder))
                _change(again, text["changes"][-1], decoder)
            if not any(difference.kind == "module" for difference in found):
                break
        try:
            _fill(again, tensors, aliases)
        except RuntimeError:  # of parameters that are missing, or of other shapes
            for difference in differences(model, again):
                _write(difference, encoder)
            raise
        for difference in list(differences(model, again)):
            if difference.kind == "buffer" and isinstance(difference.value, Tensor):
                if difference.name not in again.get_submodule(difference.path)._buffers:
                    _refuse(difference)
                key = encoder.tensor(difference.value)
                text["buffers"][difference.place] = key
                _set_buffer(again, difference.place, encoder.tensors[key])
        for difference in differences(model, again):
            _refuse(difference)
        _check_connectivity(again)
    tensors |= encoder.tensors
    check_sizes(text, tensors)
    return text, tensors


def rebuild(text: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> nn.Module:
    """Return the model of a text and tensors that :func:`describe` gave.

    Raises:
        AttributeError, ArithmeticError, LookupError, MemoryError, RuntimeError, TypeError,
            ValueError: for texts and tensors that do not fit each other or the class.
    """
    check_sizes(text, tensors)
    decoder = Decoder(tensors)
    model: nn.Module = decoder.decode(text)
    model.train(bool(text.get("training", True)))
    for change in text.get("changes", ()):
        _change(model, change, decoder)
    state = {k: v for k, v in tensors.items() if not k.startswith(ARGUMENTS)}
    _fill(model, state, dict(text.get("aliases", {})))
    for place, key in dict(text.get("buffers", {})).items():
        _set_buffer(model, place, tensors[key])
    _check_connectivity(model)
    return model


@contextmanager
def undisturbed() -> Iterator[None]:
    """Keep constructors, which draw weights, off the caller's generator and device."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), torch.inference_mode(False):
        yield


# ---------------------------------------------------------------------- changes


def _write(difference: Difference, encoder: Encoder) -> list[Any]:
    """Return a difference as JSON: kind, path, name and value."""
    kind, path, name, value = difference
    if kind not in ("module", "attribute", "mode", "requires_grad"):
        _refuse(difference)
    if difference.absent:
        if kind != "module":
            _refuse(difference)
        return ["removed", path, name, None]
    try:
        return [kind, path, name, encoder.encode(value, difference.place)]
    except TypeError as error:
        raise TypeError(f"{error}. It was changed after the model was made") from None


def _change(model: nn.Module, change: Any, decoder: Decoder) -> None:
    """Make one change that :func:`_write` wrote."""
    kind, path, name, value = change
    module = model.get_submodule(path)
    value = decoder.decode(value)
    if kind == "removed":
        del module._modules[name]
    elif kind == "module":
        value = make_activation(value) if isinstance(value, str) else value
        valid = (value is None or isinstance(value, nn.Module)) and name and "." not in name
        expect(valid, f"{path}.{name}", "to be a module", shown(value))
        module._modules[name] = value
    elif kind == "attribute":
        # Nothing that a class defines as code, and nothing of torch's own.
        own = inspect.getattr_static(type(module), name, None)
        free = not callable(own) and not hasattr(own, "__get__") and name.isidentifier()
        free = free and not name.startswith("_") and name not in vars(nn.Module())
        expect(free, f"{path}.{name}", "to be an attribute that can be set", "one that cannot")
        module.__dict__[name] = value
    elif kind == "mode":
        module.training = bool(value)
    elif kind == "requires_grad":
        module.get_parameter(name).requires_grad_(bool(value))
    else:
        raise ValueError(f"Expected a change of a known kind; got {kind!r}")


def _refuse(difference: Difference) -> None:
    """Say what of a model cannot be saved, and what to do about it."""
    kind, path, name, value = difference
    place, layer = difference.place, f"model.get_submodule({path!r})"
    advice = "Make a model with it through the constructor, or save model.state_dict()"
    what = f"another {kind} {place!r}"
    if difference.absent:
        what = f"no {kind} {place!r}"
    elif kind == "parametrization":
        what = f"{path!r} with a parametrized {name}"
        advice = (
            f"Turn it into a plain weight first: "
            f"torch.nn.utils.parametrize.remove_parametrizations({layer}, {name!r})"
        )
    elif kind == "hook":
        what = f"a hook on the forward of {path!r}, {value!r}"
        advice = "Remove it first, by the handle that registering it gave"
        tensor = getattr(value, "_tensor_name", getattr(value, "name", None))
        if isinstance(value, prune.BasePruningMethod):
            what = f"{path!r} with a pruned {tensor}"
            advice = (
                f"Turn it into a plain one first: torch.nn.utils.prune.remove({layer}, {tensor!r})"
            )
        elif type(value).__name__ in ("WeightNorm", "SpectralNorm"):
            kind = "weight" if type(value).__name__ == "WeightNorm" else "spectral"
            function = f"torch.nn.utils.remove_{kind}_norm"
            what = f"{path!r} with a normalised {tensor}"
            advice = f"Turn it into a plain one first: {function}({layer}, {tensor!r})"
    raise ValueError(
        f"Expected model to be what its constructor makes, with other numbers; got {what}. {advice}"
    )


# ---------------------------------------------------------------------- state


def _expect_values(model: nn.Module) -> None:
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            raise TypeError(f"Expected state {name!r} to be a tensor; got {type(value).__name__}")
        expect(not value.is_meta, "model", "to hold numbers", f"{name!r} on the meta device")


def _distinct(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """List a state dict's tensors, each once and on its own memory, and their other names."""
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    seen: dict[tuple[Any, ...], str] = {}
    storages: set[Any] = set()
    for name, value in model.state_dict().items():
        storage = (value.device, value.untyped_storage().data_ptr())
        view = (*storage, value.storage_offset(), value.shape, value.stride(), value.dtype)
        if value.numel() and view in seen:
            aliases[name] = seen[view]
            continue
        seen[view] = name
        # safetensors refuses views that share memory: all but the first get their own.
        copy = value.detach().cpu().contiguous()
        tensors[name] = copy.clone() if storage in storages else copy
        storages.add(storage)
    return tensors, aliases


def _fill(model: nn.Module, tensors: Mapping[str, Tensor], aliases: Mapping[str, str]) -> None:
    """Give a model a state, each tensor once: names of one parameter are one parameter again."""
    state = dict(tensors) | {name: tensors[source] for name, source in aliases.items()}
    _make_room(model, state)
    model.load_state_dict(state)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, source in aliases.items():
        if name in parameters and source in parameters:
            path, _, last = name.rpartition(".")
            owner = model.get_submodule(path)
            if last in owner._parameters:  # parametrized ones are computed
                owner._parameters[last] = parameters[source]


def _make_room(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give a model's tensors the dtypes of a state dict: loading would round to their own."""
    floats = Counter(
        state[name].dtype
        for name, _ in model.named_parameters()
        if name in state and state[name].is_floating_point()
    )
    if floats:  # the constants outside the state dict follow the weights
        model.to(floats.most_common(1)[0][0])
    for prefix, module in model.named_modules():
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            saved = state.get(f"{prefix}.{name}" if prefix else name)
            if tensor is None or saved is None:
                continue
            # Masks are numbers in a model and booleans in a file.
            if saved.dtype not in (tensor.dtype, torch.bool):
                tensor.data = tensor.data.to(saved.dtype)
            if 0 in tensor.stride():  # an expanded tensor cannot be written to
                tensor.data = tensor.data.contiguous()


def _set_buffer(model: nn.Module, place: str, value: Tensor) -> None:
    path, _, name = place.rpartition(".")
    module = model.get_submodule(path)
    expect(name in module._buffers, f"buffer {place!r}", "to be one of the model", "none")
    module._buffers[name] = value.clone()


def _check_connectivity(model: nn.Module) -> None:
    """Raise a ValueError for a network whose masks let a feature depend on itself or later ones."""
    for path, made in model.named_modules():
        if not isinstance(made, MADE):
            continue
        ranks, last = made.ranks.cpu(), made.features - 1
        in_order = torch.equal(ranks.sort().values, torch.arange(made.features))
        valid = in_order if made.graph is None else bool(((ranks >= 0) & (ranks <= last)).all())
        expect(valid, f"the ranks of {path!r}", f"to be a permutation of 0..{last}", ranks.tolist())
        for layer, degrees in enumerate(made.degrees):
            within = bool(((degrees >= 0) & (degrees <= made.features)).all())
            expect(within, f"degrees_{layer} of {path!r}", f"to be in 0..{last}", degrees.tolist())
        allowed = made.allowed & (made.ranks[:, None] > made.ranks)
        wrong = (made.reach() & ~allowed).nonzero().tolist()
        where = f"feature {wrong[0][0]} reads feature {wrong[0][1]}" if wrong else ""
        expect(not wrong, f"the masks of {path!r}", "to let features read those before", where)
