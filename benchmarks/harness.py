"""Contenders timed by turns within one run: medians, ratios with their spread, tables.

Times of one machine wander: its clock, its caches and its other work change by the second. So all
contenders of a case take turns, a ratio is taken between neighbours in time, and a table gives the
median and the quartiles of many of them.
"""

from __future__ import annotations

import argparse
import gc
import math
import os
import platform
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from tqdm.auto import tqdm

PEERS = ("pyro-ppl", "nflows", "zuko")


SETTLING = 2e-3
"""Seconds, about, of untimed calls at the start of a turn."""
COMPILING = 20.0
"""Seconds that the first call of a contender may take for other reasons than its work."""
LONG = 50e-3
"""Seconds of a call that needs none: what the contender before left is gone soon enough."""
_SCRATCH = Path("output/benchmarks")
"""For what is not to be kept, and for what is not finished."""

SLOW = 5.0
"""Seconds of a call whose warm-up is its measurement: what a first call takes longer is little."""


# ---------------------------------------------------------------------- settings


@dataclass(frozen=True)
class Settings:
    """How long and on what a benchmark runs.

    Args:
        seconds: of measuring for each contender of a case, about.
        repetitions: at most, for each contender of a case.
        threads: of every contender.
        device: of every contender.
        quick: tiny sizes, to see that everything runs.
        output: the folder of pages and plots.
    """

    seconds: float = 5.0
    repetitions: int = 200
    threads: int = 2
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    quick: bool = False
    output: Path = Path("docs/benchmarks")


def parse_settings(
    description: str | None,
    arguments: Sequence[str] | None = None,
    *,
    seconds: float = Settings.seconds,
) -> Settings:
    """The command line that all benchmarks share; sets torch's number of threads."""
    parser = argparse.ArgumentParser(description=description)
    device = Settings().device
    parser.add_argument("--device", type=torch.device, default=device, help="cpu or cuda")
    given, settings = _parse(parser, arguments, Settings(seconds=seconds), quick_seconds=0.2)
    return replace(settings, device=given.device)


def parse_resumable(
    parser: argparse.ArgumentParser,
    name: str,
    arguments: Sequence[str] | None = None,
    *,
    threads: int = Settings.threads,
    seconds: float = Settings.seconds,
) -> tuple[argparse.Namespace, Settings]:
    """Parse the command line of a benchmark that keeps what it has finished.

    Args:
        parser: with the benchmark's own arguments; those that all share are added.
        name: of the benchmark, for the folder of what is finished, ``runs``.
        arguments: of the command line.
        threads: of torch, unless told otherwise.
        seconds: of each timing, unless told otherwise.
    """
    parser.add_argument("--runs", type=Path, help="folder of what is finished")
    default = Settings(threads=threads, seconds=seconds)
    given, settings = _parse(parser, arguments, default, quick_seconds=0.1)
    folder = f"{name}-quick" if given.quick else name
    given.runs = given.runs or _SCRATCH / folder
    return given, settings


def _parse(
    parser: argparse.ArgumentParser,
    arguments: Sequence[str] | None,
    default: Settings,
    quick_seconds: float,
) -> tuple[argparse.Namespace, Settings]:
    """Add what all benchmarks take, parse, and set torch's number of threads."""
    parser.add_argument("--quick", action="store_true", help="tiny sizes and few repetitions")
    parser.add_argument("--seconds", type=float, help="of each timing, where there are any, about")
    parser.add_argument("--repetitions", type=int, help="of each timing at most")
    parser.add_argument("--threads", type=int, default=default.threads)
    parser.add_argument("--output", type=Path, help="folder of the page and its plots")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    if given.quick:  # never over the pages of a real run
        default = replace(default, seconds=quick_seconds, repetitions=5, output=_SCRATCH)
    names = ("seconds", "repetitions", "output")
    chosen = {name: getattr(given, name) for name in names if getattr(given, name) is not None}
    return given, replace(default, threads=given.threads, quick=given.quick, **chosen)


# ---------------------------------------------------------------------- measuring


@dataclass(frozen=True)
class Contender:
    """Something to time.

    Args:
        name: in tables.
        call: what is timed.
        before: what is done before every timed call, untimed.
    """

    name: str
    call: Callable[[], Any]
    before: Callable[[], Any] | None = None


@dataclass
class Timing:
    """Seconds of a contender: for every round that it took part in, the time of one call."""

    name: str
    rounds: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """The median time of a call."""
        return median(self.seconds)

    @property
    def repetitions(self) -> int:
        """How often it was timed."""
        return len(self.seconds)


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """The lower quartile, the median and the upper quartile, interpolated linearly."""
    if not values:
        raise ValueError("Expected values to have at least one entry; got none")
    ordered = sorted(values)

    def at(fraction: float) -> float:
        place = fraction * (len(ordered) - 1)
        low = math.floor(place)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (place - low) * (ordered[high] - ordered[low])

    return at(0.25), at(0.5), at(0.75)


@dataclass(frozen=True)
class Ratio:
    """How many times as long as a reference: median and quartiles over the rounds."""

    low: float
    middle: float
    high: float

    def __str__(self) -> str:
        digits = 0 if self.middle >= 30 else 1 if self.middle >= 3 else 2
        low, middle, high = (f"{x:.{digits}f}" for x in (self.low, self.middle, self.high))
        return f"{middle} ({low}-{high})"


def ratio(timing: Timing, reference: Timing) -> Ratio:
    """Times of one contender over those of another, each pair from neighbouring rounds.

    The one with fewer rounds decides how many pairs there are.
    """
    few, many = (
        (timing, reference) if timing.repetitions <= reference.repetitions else (reference, timing)
    )
    quotients = []
    for round_, seconds in zip(few.rounds, few.seconds, strict=True):
        nearest = min(range(many.repetitions), key=lambda i: abs(many.rounds[i] - round_))
        other = many.seconds[nearest]
        quotients.append(seconds / other if few is timing else other / seconds)
    return Ratio(*quartiles(quotients))


def synchronizer(device: torch.device) -> Callable[[], None]:
    """What waits until a device has done its work."""
    if device.type == "cuda":
        return torch.cuda.synchronize
    return lambda: None


@contextmanager
def _no_collection() -> Iterator[None]:
    """Garbage is collected between cases and after long calls, not within a measured call."""
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _warm_up(call: Callable[[], float], seconds: float) -> float:
    """About what a call takes: the least of a few, or of one if that fills the time already.

    First calls compile, import and allocate, for up to some seconds; a call that really takes long
    is not made again just to be measured.
    """
    times = [call()]
    while len(times) < 5 and sum(times) < (COMPILING if len(times) == 1 else seconds):
        times.append(call())
    return min(times)


class _Turns(NamedTuple):
    """How a contender is timed: its calls in a turn, those before that do not count, its turns."""

    calls: int
    untimed: int
    rounds: int

    @classmethod
    def of(cls, contender: Contender, estimate: float, settings: Settings) -> _Turns:
        """Choose them by the seconds that a call takes, about."""
        repeat = contender.before is None and estimate < 1e-3
        calls = max(1, round(1e-3 / max(estimate, 1e-9))) if repeat else 1
        settling = max(1, round(SETTLING / max(estimate, 1e-9)))
        untimed = settling if estimate < LONG else 0
        affordable = int(settings.seconds / max(estimate * (calls + untimed), 1e-9))
        least = 3 if estimate < settings.seconds else 1
        return cls(calls, untimed, max(1, min(settings.repetitions, max(affordable, least))))


def run_contenders(
    contenders: Sequence[Contender],
    settings: Settings,
    title: str = "",
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Time contenders by turns.

    Each is called a few times to warm up, which also tells how long it takes. From that follows
    how many rounds it takes part in, so that all get about the same time: at least one, and at
    least three where a call takes less than that time. The rounds of a slow contender are spread
    evenly over those of the fast ones, and in every round the order is drawn anew. A call of more
    than some seconds is not made again after the warm-up, which is then its one time. A call that
    takes less than a millisecond is repeated within its turn, and the mean counts. A turn begins
    with calls that are not timed, for some milliseconds, so that the contender before, whose
    threads may spin for a while and whose data fills the caches, does not matter.

    Args:
        contenders: what to time; names differ.
        settings: time and repetitions.
        title: for the progress bar.
        clock: seconds.

    Returns:
        Timings by name, in the order of the contenders.
    """
    names = [contender.name for contender in contenders]
    if len(set(names)) < len(names):
        raise ValueError(f"Expected contenders of different names; got {names}")
    wait = synchronizer(settings.device)
    timings = {name: Timing(name) for name in names}

    def turn(contender: Contender, calls: int, untimed: int = 0) -> float:
        for _ in range(untimed):
            if contender.before is not None:
                contender.before()
            contender.call()
        if contender.before is not None:
            contender.before()
        wait()
        start = clock()
        for _ in range(calls):
            contender.call()
        wait()
        taken = clock() - start
        if taken > LONG:
            gc.collect()  # a long call may leave gigabytes in cycles
        return taken / calls

    with _no_collection(), tqdm(total=len(contenders), desc=title, unit="call") as bar:
        plans: list[_Turns] = []
        for contender in contenders:
            bar.set_postfix_str(f"{contender.name} (warm-up)")
            estimate = _warm_up(lambda contender=contender: turn(contender, 1), settings.seconds)
            if estimate > max(SLOW, settings.seconds):
                timings[contender.name] = Timing(contender.name, [0], [estimate])
                plans.append(_Turns(1, 0, rounds=0))
            else:
                plans.append(_Turns.of(contender, estimate, settings))
        rounds = [plan.rounds for plan in plans]
        total = max(rounds, default=0)
        bar.reset(sum(rounds))
        shuffle = random.Random(0).shuffle
        for number in range(total):
            # The k-th of n rounds of a contender is where k/n of all rounds are passed.
            taking_part = [
                i for i, n in enumerate(rounds) if (number + 1) * n // total > number * n // total
            ]
            shuffle(taking_part)
            for i in taking_part:
                bar.set_postfix_str(names[i])
                timings[names[i]].rounds.append(number)
                timings[names[i]].seconds.append(
                    turn(contenders[i], plans[i].calls, plans[i].untimed)
                )
                bar.update()
    return timings


# ---------------------------------------------------------------------- pages


def machine_line(settings: Settings) -> str:
    """On what, and with which versions."""
    used = "cpu" if settings.device.type == "cpu" else torch.cuda.get_device_name(settings.device)
    versions = [f"Python {platform.python_version()}", f"torch {torch.__version__}"]
    versions += [f"{name} {found}" for name in ("llvmlite", *PEERS) if (found := _version(name))]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parts = [
        f"{processor()}, {cores} cores",
        *([] if used == "cpu" else [used]),
        f"{settings.threads} thread{'s' * (settings.threads != 1)}",
        platform.system(),
        ", ".join(versions),
        date.today().isoformat(),
    ]
    return "; ".join(parts)


def processor() -> str:
    """The name of the CPU, and its widest vectors: names of rented machines do not tell them."""
    name, vectors = platform.processor() or platform.machine(), ""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    for line in reversed(lines):
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            name = value.strip()
        elif key.strip() == "flags":
            known = {"AVX-512": "avx512f", "AVX2": "avx2"}
            vectors = next((word for word, flag in known.items() if flag in value.split()), "")
    return f"{name} with {vectors}" if vectors else name


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def milliseconds(seconds: float) -> str:
    """Three significant digits of milliseconds."""
    value = 1e3 * seconds
    if value == 0:
        return "0"
    decimals = max(0, 2 - math.floor(math.log10(value)))
    return f"{value:.{min(decimals, 4)}f}"


def spread(timing: Timing) -> str:
    """Median, quartiles and repetitions of a timing, in milliseconds."""
    low, middle, high = (milliseconds(value) for value in quartiles(timing.seconds))
    return f"{middle} ({low}-{high}), {timing.repetitions}x"


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns line up; all columns after the first to the right."""
    for row in rows:
        if len(row) != len(headings):
            raise ValueError(f"Expected rows of {len(headings)} cells; got {list(row)}")
    lines = [list(headings), *map(list, rows)]
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(headings))]

    def join(cells: Sequence[str]) -> str:
        padded = (
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return f"| {' | '.join(padded)} |"

    rule = [("-" * (w - 1) + ":") if i else "-" * w for i, w in enumerate(widths)]
    return "\n".join([join(headings), join(rule), *map(join, rows)])


def details(cases: Mapping[str, Mapping[str, Timing]]) -> str:
    """Everything that was measured: a row for every case, a column for every contender."""
    names = list(dict.fromkeys(name for timings in cases.values() for name in timings))
    rows = [
        [case, *(spread(timings[name]) if name in timings else "-" for name in names)]
        for case, timings in cases.items()
    ]
    return markdown_table(["case", *names], rows)


def write_page(
    name: str, title: str, sections: Sequence[str], settings: Settings, *, finished: bool = True
) -> Path:
    """A page of a benchmark: its title, the machine, and sections of Markdown.

    It is printed, too. One that is not ``finished`` says so.
    """
    command = f"python -m benchmarks.{name}"
    if settings.device.type != "cpu":
        command += f" --device {settings.device}"
        name += f"-{settings.device.type}"
    settings.output.mkdir(parents=True, exist_ok=True)
    path = settings.output / f"{name}.md"
    machine = f"{machine_line(settings)}. Written by `{command}`."
    if settings.quick:
        machine += " **A quick run: its numbers mean nothing.**"
    if not finished:
        machine += " **Cut off: what is missing was not measured.**"
    path.write_text("\n\n".join([f"# {title}", machine, *sections]) + "\n", encoding="utf-8")
    print(f"\n{path.read_text(encoding='utf-8')}")
    print(f"benchmarks.{name}: written to {path}", flush=True)
    return path
