"""Models in files: safetensors, with the constructor's arguments as text beside the weights.

A file holds numbers and text only. Nothing in it is executed: the text names a registered class
and its arguments, and any other name is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from made_flows._checks import checked_device, expect, expect_type
from made_flows._files import expect_place, replacing
from made_flows._keywords import helpful
from made_flows._registry import is_saveable
from made_flows.serialization.record import describe, rebuild, undisturbed

FORMAT_VERSION = 2
"""The version of the files written; :func:`load` reads this one and those before it."""

_KEY = "made_flows"
_CHECKSUM = "made_flows_checksum"


def save(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Save a model: its class, its constructor's arguments, its parameters and buffers.

    What was changed after the model was made is saved with it: attributes, modules put in the
    place of others, frozen parameters, modes of parts, ties between weights. What cannot be written
    is refused: parametrized and pruned weights, hooks on a forward, layers of unknown classes. A
    model is made of what would be written, and compared, before a file is touched. (Hooks of
    gradients, and attributes that begin with an underscore, are taken for no part of a model.)

    The file is in the safetensors format, whose tensors any safetensors reader can load. It is
    written beside its place and moved there when complete, so that an interrupted save leaves
    what was there before. A checksum tells :func:`load` whether it is as it was written.

    Args:
        model: a model of this library, or of a class decorated with ``saveable``.
        path: the file to write, ``.safetensors`` by custom.

    Raises:
        TypeError: for a model of another class, or one made with an argument that cannot be
            written as numbers and text, such as a function of one's own; for a path of another
            type.
        ValueError: for a model that is not what its arguments make, in a way that a file cannot
            say, with what to do about it.
        FileNotFoundError: when the folder does not exist.
        IsADirectoryError: when the path is a folder.
        OSError: for a file that cannot be written, as of a full disk.

    Example:
        >>> import tempfile, pathlib, made_flows as mf
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "model.safetensors"
        >>> save(mf.GaussianMADE(features=3, hidden_features=(8,)), path)
        >>> type(load(path)).__name__
        'GaussianMADE'
    """
    advice = "decorate a class of your own with made_flows.saveable, or save model.state_dict()"
    known = is_saveable(type(model)) and hasattr(model, "state_dict")
    expect_type(known, "model", f"to be of a class that can be saved ({advice})", model)
    place = _expect_path(path)
    expect_place(place)
    text, tensors = describe(model)
    header = {
        "format": _KEY,
        "format_version": FORMAT_VERSION,
        "library_version": _library_version(),
        **text,
    }
    written = json.dumps(header, allow_nan=False)
    metadata = {_KEY: written, _CHECKSUM: checksum(written, tensors)}
    with replacing(place) as temporary:
        try:
            save_file(tensors, temporary, metadata)
        except SafetensorError as error:
            raise OSError(f"Expected {place} to be written; got {error}") from error


def _expect_path(path: Any) -> Path:
    expect_type(isinstance(path, (str, os.PathLike)), "path", "to be a str or os.PathLike", path)
    return Path(path).resolve()


def checksum(header: str, tensors: Mapping[str, Tensor]) -> str:
    """Hash all that a file says: its header as it stands there, and its tensors."""
    total = hashlib.sha256(header.encode())
    for name in sorted(tensors):
        # A copy: NumPy's view of a model's own memory would pin its storage to its size.
        tensor = tensors[name].detach().clone(memory_format=torch.contiguous_format)
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


@helpful
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
            format, names an unknown class, does not fit the class, or asks for more numbers than
            it holds; for a device that is not there.

    Example:
        >>> import tempfile, pathlib, made_flows as mf
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "model.safetensors"
        >>> save(mf.BernoulliMADE(features=3, hidden_features=(8,)).eval(), path)
        >>> model = load(path, dtype=torch.float64)
        >>> model.training, next(model.parameters()).dtype
        (False, torch.float64)
    """
    floating = dtype is None or getattr(dtype, "is_floating_point", False) is True
    expect_type(floating, "dtype", "to be a floating-point torch.dtype", dtype)
    to = checked_device(device, holds_numbers=False)
    place = _expect_path(path)
    if not place.is_file():
        raise FileNotFoundError(f"Expected path to be a file; got {path}, which is not one")
    with undisturbed():
        model = _built(place)
    return model.to(device=to, dtype=dtype)


def _built(path: Path) -> nn.Module:
    header, tensors = _read(path)
    try:
        return rebuild(header, tensors)
    except Exception as error:  # of constructors called with what they do not expect
        written = header.get("library_version", "unknown")
        raise ValueError(
            f"Expected {path} to hold a model that this version of made_flows "
            f"({_library_version()}) can build; got one written by version {written}, and: "
            f"{error or type(error).__name__}"
        ) from error


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the header and the tensors of a file, checked as far as the model's class."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(
            f"Expected {path} to be a complete safetensors file; got one that is truncated, "
            f"damaged or of another kind ({error}). Save or copy it again"
        ) from error
    got = "one of another origin. Read its tensors with safetensors.torch.load_file"
    expect(_KEY in metadata, str(path), "to be written by made_flows.save", got)
    try:
        header = json.loads(metadata[_KEY])
        number = header["format_version"]
        valid = header["format"] == _KEY and isinstance(number, int) and number >= 1
    except (KeyError, RecursionError, TypeError, ValueError):
        header, number, valid = {}, None, False
    got = "one that cannot be read. Save the model again"
    expect(valid, str(path), "to have a header written by made_flows.save", got)
    if number > FORMAT_VERSION:
        raise ValueError(
            f"Expected {path} in format {FORMAT_VERSION} or before; got format {number}, written "
            f"by made_flows {header.get('library_version')} (this is {_library_version()}). "
            f"Upgrade made_flows"
        )
    # Files of the first format have no checksum.
    if number > 1 or _CHECKSUM in metadata:
        whole = metadata.get(_CHECKSUM) == checksum(metadata[_KEY], tensors)
        got = "contents that do not fit its checksum: it was damaged or changed"
        expect(whole, str(path), "to be as it was written", f"{got}. Save or copy it again")
    return header, tensors


def _library_version() -> str:
    try:
        return version("made-flows")
    except PackageNotFoundError:
        return "unknown"
