"""Models in files: safetensors, with the constructor's arguments as text beside the weights.

A file holds numbers and text only. Nothing in it is executed: the text names a registered class
and its arguments, and any other name is refused.
"""

from __future__ import annotations

import json
import os
import uuid
from collections import Counter
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from made_flows._checks import expect_type
from made_flows._registry import REGISTRY
from made_flows.serialization.arguments import ARGUMENTS, decode, encode

__all__ = ["FORMAT_VERSION", "load", "save"]

FORMAT_VERSION = 1
"""The version of the files written; :func:`load` reads this one and those before it."""

_KEY = "made_flows"


def save(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Save a model: its class, its constructor's arguments, its parameters and buffers.

    The file is in the safetensors format, whose tensors any safetensors reader can load. It is
    written beside its place and moved there when complete, so that an interrupted save leaves
    what was there before.

    Args:
        model: a model of this library, or of a class decorated with ``saveable``.
        path: the file to write, ``.safetensors`` by custom.

    Raises:
        TypeError: for a model of another class, or one made with an argument that cannot be
            written as numbers and text, such as a function of one's own.
        FileNotFoundError: when the folder does not exist.

    Example:
        >>> import tempfile, pathlib, made_flows as mf
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "model.safetensors"
        >>> save(mf.GaussianMADE(features=3, hidden_features=(8,)), path)
        >>> type(load(path)).__name__
        'GaussianMADE'
    """
    name = type(model).__name__
    expect_type(
        REGISTRY.get(name) is type(model) and hasattr(model, "state_dict"),
        "model",
        "to be of a class that can be saved (decorate a class of your own with "
        "made_flows.saveable, or save model.state_dict())",
        model,
    )
    path = Path(path).resolve()
    if not path.parent.is_dir():
        raise FileNotFoundError(f"Expected the folder of path to exist; got {path.parent}")

    arguments: dict[str, Tensor] = {}
    tree = encode(model, name, arguments)
    tensors, aliases = _distinct(model)
    header = {
        "format": _KEY,
        "format_version": FORMAT_VERSION,
        "library_version": _library_version(),
        **tree,
        "training": model.training,
        "aliases": aliases,
    }
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        save_file(tensors | arguments, temporary, {_KEY: json.dumps(header, allow_nan=False)})
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def load(
    path: str | os.PathLike[str],
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Any:
    """Load a model that :func:`save` wrote, in the mode (training or evaluation) it was in.

    Args:
        path: the file.
        device: where to put the model; None for the CPU, wherever it was saved from.
        dtype: the floating-point dtype to cast to; None for the one it was saved in. Integers
            and masks keep theirs.

    Returns:
        The model, an object of the class that was saved.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: for a file that is damaged, is not from this library, was written in a newer
            format, names an unknown class, or does not fit the class.

    Example:
        >>> import tempfile, pathlib, made_flows as mf
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "model.safetensors"
        >>> save(mf.BernoulliMADE(features=3, hidden_features=(8,)).eval(), path)
        >>> model = load(path, dtype=torch.float64)
        >>> model.training, next(model.parameters()).dtype
        (False, torch.float64)
    """
    expect_type(
        dtype is None or getattr(dtype, "is_floating_point", False) is True,
        "dtype",
        "to be a floating-point torch.dtype",
        dtype,
    )
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"Expected path to be a file; got {path}, which is not one")
    header, tensors = _read(path)
    try:
        # Constructors draw initial weights: not from the caller's generator.
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            model = decode(header, tensors)
        aliases = dict(header.get("aliases", {}))
        state = {k: v for k, v in tensors.items() if not k.startswith(ARGUMENTS)}
        state |= {name: tensors[source] for name, source in aliases.items()}
        _make_room(model, state)
        model.load_state_dict(state)
        model.train(bool(header.get("training", True)))
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        written = header.get("library_version", "unknown")
        raise ValueError(
            f"Expected {path} to hold a model that this version of made_flows "
            f"({_library_version()}) can build; got one written by version {written}, and: {error}"
        ) from error
    return model.to(device=device, dtype=dtype)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The header and the tensors of a file, checked as far as the model's class."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(
            f"Expected {path} to be a complete safetensors file; got one that is truncated, "
            f"damaged or of another kind ({error}). Save or copy it again"
        ) from error
    if _KEY not in metadata:
        raise ValueError(
            f"Expected {path} to be written by made_flows.save; got a safetensors file of another "
            f"origin. Read its tensors with safetensors.torch.load_file"
        )
    try:
        header = json.loads(metadata[_KEY])
        number = header["format_version"]
        valid = header["format"] == _KEY and isinstance(number, int) and number >= 1
    except (KeyError, RecursionError, TypeError, ValueError):
        header, number, valid = {}, None, False
    if not valid:
        raise ValueError(
            f"Expected {path} to have a header written by made_flows.save; got one that cannot "
            f"be read. Save the model again"
        )
    if number > FORMAT_VERSION:
        raise ValueError(
            f"Expected {path} in format {FORMAT_VERSION} or before; got format {number}, written "
            f"by made_flows {header.get('library_version')} (this is {_library_version()}). "
            f"Upgrade made_flows"
        )
    return header, tensors


def _distinct(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a state dict, each once and on its own memory, and the other names of them."""
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    seen: dict[tuple[Any, ...], str] = {}
    storages: set[Any] = set()
    for name, value in model.state_dict().items():
        expect_type(isinstance(value, Tensor), f"state {name!r}", "to be a tensor", value)
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


def _make_room(model: nn.Module, state: dict[str, Tensor]) -> None:
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
            if saved.dtype != tensor.dtype:
                tensor.data = tensor.data.to(saved.dtype)
            if 0 in tensor.stride():  # an expanded tensor cannot be written to
                tensor.data = tensor.data.contiguous()


def _library_version() -> str:
    try:
        return version("made-flows")
    except PackageNotFoundError:
        return "unknown"
