"""Maximum likelihood by stochastic gradients, with early stopping."""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from numbers import Real
from typing import Any, TypedDict, get_args

import torch
from torch import nn

from made_flows._checks import (
    LOST_ON_META,
    boolean,
    checked_device,
    checked_seed,
    expect,
    expect_type,
    expect_word,
    positive_integer,
    real_number,
)
from made_flows._keywords import helpful
from made_flows._torch import modes_kept
from made_flows.training.checkpoint import Checkpoint, describe_model
from made_flows.training.data import Rows, Source, open_data
from made_flows.training.defaults import Settings, checked_settings, settings_for
from made_flows.training.history import History
from made_flows.training.likelihood import takes_double, training_loss, units_of
from made_flows.training.optimization import (
    Average,
    Dropping,
    Optimizer,
    left_in_evaluation,
    make_optimizer,
    moved,
    named_tensors,
    seeded,
)
from made_flows.training.processes import Processes
from made_flows.training.rates import Rates, Schedule
from made_flows.training.run import Callback, Options, Run
from made_flows.training.standardization import (
    set_units,
    warn_of_other_units,
    warn_of_unseen_contexts,
)
from made_flows.training.target import Target
from made_flows.transforms.units import Units


class FitOptions(TypedDict, total=False):
    """Keywords of :func:`fit` that are passed on by functions that train."""

    standardize: bool
    batch_size: int | None
    learning_rate: float | None
    max_epochs: int | None
    patience: int | None
    max_seconds: float | None
    clip_norm: float | None
    weight_decay: float | None
    dropout: float | None
    sparsity: float | None
    optimizer: Optimizer | None
    schedule: Schedule | None
    keep_training_mode: bool
    callbacks: Callback | Sequence[Callback]
    checkpoint: str | os.PathLike[str] | None
    device: torch.device | str | None
    autocast: bool
    compile: bool | str
    progress: bool | str
    seed: int | None


@helpful
def fit(
    model: nn.Module,
    data: Any,
    context: Any = None,
    *,
    validation: Any = 0.1,
    standardize: bool = True,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    max_epochs: int | None = None,
    patience: int | None = 20,
    max_seconds: float | None = None,
    clip_norm: float | None = 5.0,
    weight_decay: float | None = None,
    dropout: float | None = None,
    sparsity: float | None = None,
    optimizer: Optimizer | None = None,
    schedule: Schedule | None = None,
    average: float | None = None,
    keep_training_mode: bool = False,
    callbacks: Callback | Sequence[Callback] = (),
    checkpoint: str | os.PathLike[str] | None = None,
    device: torch.device | str | None = None,
    autocast: bool = False,
    compile: bool | str = False,  # noqa: A002 (as torch calls it)
    progress: bool | str = True,
    seed: int | None = None,
) -> History:
    r"""Fit a density model by maximum likelihood, and leave it with its best weights.

    Minimises :math:`-\frac{1}{N} \sum_n \log p_\theta(x_n \mid c_n)` by Adam (Kingma & Ba 2015),
    or AdamW (Loshchilov & Hutter 2019) with a weight decay. After every epoch the model is scored
    on the validation rows, in evaluation mode. When training ends, for whatever reason, the
    parameters and buffers of the epoch with the lowest validation NLL are put back (without
    validation rows: with the lowest training NLL), and the model is in evaluation mode: drawn
    orders, dropout and batch normalisation would make its scores random.

    Data may be in any units. A model that nobody has trained yet takes location and scale of the
    rows to train on, and those of their contexts, as its own (:class:`made_flows.transforms.units.
    Units`): they are saved with it, and its densities, samples and the NLL of the history are in
    the units of the data.

    Where ``torch.distributed`` is initialised, as under ``torchrun``, every process makes the same
    call and takes its part of each batch; gradients are added up, so that all have the weights of
    one process with these batches, but for rounding. They start from the first one's weights.

    Args:
        model: a module for which ``model(context)`` is a distribution and ``log_prob(x)`` has one
            number per row. Rows are moved to its device and cast to its floating-point dtype,
            integers too.
        data: rows in memory: an (N, D) tensor or array, nested sequences, a ``TensorDataset``, a
            tuple (x, context). Rows of a file (``numpy.load(path, mmap_mode="r")``), which are
            checked once and then read batch by batch. Or batches, each of them x (B, D) or a pair
            (x, context): a ``DataLoader``, or any iterable that can be read again in every epoch.
            Or a ``Dataset`` of such items. A list of batches and a generator are read into memory.
        context: (N, C), the contexts of rows in memory or of a file; (N, ...) for a model such as
            :class:`~made_flows.Embedded`.
        validation: the fraction of rows to hold out at random, or data of any kind above (a
            tuple (x, context) with contexts), or None. To hold out a fraction of an iterable that
            is neither in memory nor a plain ``DataLoader``, one pass is kept in memory, with a
            warning.
        standardize: whether a model of real values works in standardised units (a flow behind its
            fixed transforms, unless one is a :class:`~made_flows.Standardize`), and others read
            contexts in such units, whose constant columns are named, and not looked at. Values
            more than twenty standard deviations out count as if they were twenty out. Of more than
            2**18 rows, that many at most are measured. A model that was trained or loaded before
            keeps its units, with a warning where the rows are in quite other ones.
        batch_size: rows per step, at most: an epoch is cut into batches of equal size (of two or
            three for an odd number in pairs). By default from 32 for a thousand rows to 256 from
            eight thousand. A stream of batches has its own.
        learning_rate: of Adam; by default 3e-3 for rows of real values, and 1e-3 for discrete
            ones, for mixed ones of more than two thousand, and for streams. An ``optimizer`` has
            its own.
        max_epochs: the largest number of passes over the data; by default 200, and for few rows
            as many as make 6000 steps, up to 1000. 0 trains nothing.
        patience: stop after this many epochs without a lower NLL; None never does. With a
            ``schedule`` of ``"plateau"``, see there.
        max_seconds: end the epoch after this time, and training with it; None never does.
        clip_norm: gradients are scaled down to this total norm; None leaves them.
        weight_decay: decoupled weight decay of AdamW, of all parameters. By default, where no
            ``learning_rate`` is given either, 0.3 for fewer than a hundred rows for each column (of
            real values also two thousand at most), and then of the weights of masked networks
            alone, but for direct connections.
        dropout: probability of dropping a hidden unit while training, for networks that have no
            dropout of their own. By default 0.2 where there are fewer than fifty rows for each
            column, none where there are more; for discrete values in 64 columns or more, 0.5
            below a hundred rows for each column and 0.25 above.
        sparsity: of the direct connections of models of discrete values: after every step they
            shrink towards zero by this share of their rate, which is twenty times
            ``learning_rate``, up to 0.02 (as is that of the outputs' biases). By default 0.1, and
            0.3 where there are fewer than two rows for each column; 0 treats them as other
            weights.
        optimizer: an optimizer of the model's parameters, or a function that makes one from them,
            used instead.
        schedule: what becomes of the learning rate. ``"constant"``: it stays. ``"cosine"``: it goes
            to zero over ``max_epochs`` (Loshchilov & Hutter 2017, eq. 5, without restarts).
            ``"plateau"``: it falls to 0.3 of what it was when ``patience`` epochs in a row were no
            better, and twice more when half as many were; at the latest at seven, eight and nine
            tenths of ``max_epochs`` or ``max_seconds``. Then half as many that are no better end
            training. Unless there is an ``average``, it goes on from the best weights after such
            epochs. By default ``"plateau"`` for rows in memory or of a file, where neither
            ``learning_rate`` nor ``optimizer`` is given, and else ``"constant"``.
        average: the decay, such as 0.999, of an exponential moving average of the weights
            (Polyak & Juditsky 1992), which is then what is validated and kept; its memory is
            shorter in the first steps. 0 for none. By default 0.99 with the rate that real
            values have by default, and none otherwise.
        keep_training_mode: leave every module in the mode that it was in, instead.
        callbacks: a function of the model and its history, or several, called after every epoch,
            when the model is in evaluation mode and has the weights that were validated. One that
            returns True ends training.
        checkpoint: a file that says where training stands, written again and again. After a kill,
            at whatever moment, the same call goes on from it, and ends with the same weights, bit
            for bit, as if it had not been interrupted; after the end, it returns what there is.
            Refused for another model, other data or other arguments (but ``max_epochs``, without
            a cosine, ``max_seconds``, ``device``, ``compile``, ``callbacks`` and ``progress``); the
            epochs of a run that is made longer keep the rates that they had. Of streams, which go
            on from the end of an epoch, the rows are not compared.
        device: where to train, such as ``"cuda"``: the model is moved there, and stays. Rows that
            take no more than a quarter of its free memory are moved at once, others batch by batch.
            None trains where the model is.
        autocast: multiply matrices in bfloat16 in training steps. Weights, the densities that are
            worked out of what networks give, and validation stay in single precision.
        compile: train by ``torch.compile``; a text names its backend. It takes a minute, and pays
            where many small operations do. Refused for data with missing values, for which each
            row has an order of its own.
        progress: show a progress bar; a text names it, in place of the model's class.
        seed: below 2**64, for the split, the order of rows, and dropout. The global random
            generators are left as they were; without a seed, one is drawn from torch's.

    Returns:
        The :class:`History`. Ctrl-C ends training early and returns too; before the first epoch
        is over, the weights are those that the model came with.

    Raises:
        ValueError, TypeError: before any work, for a bad argument, for rows of a wrong shape or
            with a value that is not finite (named by row and column), for columns to standardise
            that are constant; during it, for such a batch of an iterable.
        TrainingError: for a loss or gradient that is not finite.

    Example:
        >>> import made_flows as mf
        >>> _ = torch.manual_seed(0)
        >>> x = torch.randn(500, 2) @ torch.tensor([[1.0, 0.8], [0.0, 0.6]])
        >>> model = mf.GaussianMADE(features=2, hidden_features=(16,))
        >>> history = fit(model, x, max_epochs=30, learning_rate=1e-2, progress=False, seed=0)
        >>> history.train[-1] < history.train[0]
        True
    """
    expect_type(isinstance(model, nn.Module), "model", "to be a torch.nn.Module", model)
    off = "torch.no_grad() or inference_mode()"
    expect(torch.is_grad_enabled(), "gradients", "to be enabled where fit is called", off)
    _expect_trainable(model)
    given = checked_settings(
        batch_size=batch_size, learning_rate=learning_rate, max_epochs=max_epochs,
        weight_decay=weight_decay, dropout=dropout, sparsity=sparsity, average=average,
    )  # fmt: skip
    options = _options(clip_norm, max_seconds, progress, callbacks)
    patience = None if patience is None else positive_integer(patience, "patience")
    words = "to be 'constant', 'plateau', 'cosine' or None"
    expect_word(schedule, (None, *get_args(Schedule)), "schedule", words)
    lasting = schedule == "plateau" and patience is None
    expect(not lasting, "patience", "to be a number of epochs with schedule='plateau'", patience)
    standardize = boolean(standardize, "standardize")
    keep_training_mode = boolean(keep_training_mode, "keep_training_mode")
    seed = checked_seed(seed)
    autocast = boolean(autocast, "autocast")
    place = checked_device(device)
    processes = Processes()
    processes.check_trainable(model)
    with moved(model, place) as stay:
        loss = training_loss(model, autocast, compile)
        file = Checkpoint(checkpoint, processes)
        asked = "drawn" if seed is None else str(seed)
        if seed is None and file.saved is not None:
            seed = int(file.saved["seed"])
        elif seed is None:
            seed = processes.same(int(torch.randint(2**62, (), device="cpu")))
        known = units_of(model)
        found = [units for units in known if standardize and not units.active and not units.settled]
        target = Target.of(model, takes_double(model, found), device is not None)
        target = replace(target, compiled=bool(compile))
        modes = modes_kept(model.modules()) if keep_training_mode else left_in_evaluation(model)
        with seeded(seed, target.device) as generator, modes:
            sources = _sources(data, context, validation, target, given["batch_size"], generator)
            train, held_out = sources
            rows = len(train) if isinstance(train, Rows) else None
            settings = settings_for(
                rows, target, given | {"schedule": schedule},
                own_optimizer=optimizer is None, patient=patience is not None,
            )  # fmt: skip
            adam, parameters = make_optimizer(
                optimizer, model, settings, shrinks_all=weight_decay is not None
            )
            _expect_callable(model, context)
            ema = Average(parameters, settings.average) if settings.average else None
            if file.place is not None:
                file.check(_request(
                    model, train, held_out, settings, adam, seed=asked, standardize=standardize,
                    patience=patience, autocast=autocast, clip_norm=clip_norm,
                ))  # fmt: skip
            run = Run(
                model, adam, parameters, Rates(adam, settings.schedule, patience), ema, generator,
                options, settings, seed, known, processes, file, loss,
                Dropping(model, settings.dropout),
            )  # fmt: skip
            if file.saved is not None:
                finished = len(file.saved["history"]["train"])
                wanted = f"to be at least {finished}, the epochs of the checkpoint"
                most = settings.max_epochs
                expect(finished <= most, "max_epochs", wanted, most)
                for units, numbers in zip(known, file.saved["units"], strict=True):
                    units.set(*numbers)
            with _settled(known, found, run.history):
                if file.saved is None and settings.max_epochs:
                    warn_of_unseen_contexts(known, train)
                    warn_of_other_units(known, train)
                    set_units(found, train)
                    for units in found:
                        units.set(*processes.same(units.numbers()))
                stay()
                return run(train, held_out)


def _expect_trainable(model: nn.Module) -> None:
    """Refuse models whose tensors torch cannot train, or that are not there."""
    tensors = dict(named_tensors(model))
    trainable = not any(tensor.is_inference() for tensor in tensors.values())
    got = (
        "one made in it, which torch cannot train. Load its state_dict() into a model made outside"
    )
    expect(trainable, "model", "to be made outside of torch.inference_mode()", got)
    lost = [name for name, tensor in tensors.items() if tensor.is_meta]
    got = f"{', '.join(lost[:3])} on meta ({LOST_ON_META})"
    expect(not lost, "model", "to hold numbers", got)


def _options(clip_norm: Any, max_seconds: Any, progress: Any, callbacks: Any) -> Options:
    """Check the arguments that say how a run steps, how long, and who is told."""
    expect_type(isinstance(progress, (bool, str)), "progress", "to be a bool or a text", progress)
    each = tuple(callbacks) if isinstance(callbacks, Sequence) else (callbacks,)
    for callback in each:
        wanted = "to be functions of model and history"
        expect_type(callable(callback), "callbacks", wanted, callback)
    limits = {"clip_norm": clip_norm, "max_seconds": max_seconds}
    for name, value in limits.items():
        limits[name] = math.inf if value is None else real_number(value, name, above=0)
    return Options(**limits, progress=progress, callbacks=each)


@contextmanager
def _settled(known: list[Units], found: list[Units], history: History) -> Iterator[None]:
    """Let the known units be those of trained weights; clear those found, if none were trained."""
    try:
        yield
    finally:
        trained = history.best_epoch > 0
        for units in known if trained else ():
            units.settle()
        for units in () if trained else found:  # the model is the one that came
            units.clear()


def _request(
    model: nn.Module,
    train: Source,
    held_out: Source | None,
    settings: Settings,
    optimizer: torch.optim.Optimizer,
    **arguments: Any,
) -> dict[str, str]:
    """Say what is trained on what, so that a checkpoint of another call is told from this one's."""
    call = asdict(settings)
    epochs, average, schedule = (call.pop(name) for name in ("max_epochs", "average", "schedule"))
    if schedule == "cosine":  # other schedules do not depend on the number of epochs
        schedule += f" over {epochs} epochs"
    said: dict[str, Any] = {
        "the model": describe_model(model),
        "data": train.described(),
        "validation": None if held_out is None else held_out.described(),
        **call,
        "optimizer": _settings_of(optimizer),
        "schedule": schedule,  # after the optimizer, on which both depend: the first is named
        "average": average,
        **arguments,
    }
    return {name: str(value) for name, value in said.items()}


def _settings_of(optimizer: torch.optim.Optimizer) -> str:
    """Say what an optimizer is: its class, and the settings of its groups that are of their own."""
    said = f"{type(optimizer).__name__} {optimizer.defaults}"
    for number, group in enumerate(optimizer.param_groups):
        own = {
            name: value
            for name, value in group.items()
            if name != "params" and value != optimizer.defaults.get(name)
        }
        said += f", group {number} {own}" if own else ""
    return said


def _expect_callable(model: nn.Module, context: Any) -> None:
    """Refuse a module that is no model of a density, such as a bare network."""
    try:
        inspect.signature(model.forward).bind(*(() if context is None else (context,)))
    except TypeError:
        raise TypeError(
            f"Expected model to be called with a context alone, or nothing, and to give a "
            f"distribution, as a GaussianMADE or MAF does; got a {type(model).__name__}, whose "
            f"forward takes {inspect.signature(model.forward)}"
        ) from None


def _sources(
    data: Any,
    context: Any,
    validation: Any,
    target: Target,
    batch_size: int | None,
    generator: torch.Generator,
) -> tuple[Source, Source | None]:
    """Return the rows to train on and those to validate on."""
    fraction: float | None = None
    if isinstance(validation, Real):
        fraction = real_number(validation, "validation")
        expect(0 <= fraction < 1, "validation", "to be a fraction in [0, 1) or data", validation)
    train = open_data(data, context, target, "data", batch_size, generator)
    if fraction:
        return train.split(fraction, generator)
    if validation is None or fraction == 0:
        return train, None
    return train, open_data(validation, None, target, "validation", batch_size, None)
