"""The harness of the benchmarks: what it counts, divides and writes. Nothing here is timed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import _peers, forward, harness, inverse
from benchmarks.harness import Contender, Settings, Timing


@pytest.fixture(autouse=True)
def _nothing_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls that a clock says are long leave no garbage: to look for it takes all the time."""
    monkeypatch.setattr(harness.gc, "collect", lambda: 0)


class Clock:
    """Seconds that pass only where a contender says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def takes(self, *seconds: float) -> Callable[[], None]:
        """A call that takes these times by turns."""
        turns = 0

        def call() -> None:
            nonlocal turns
            self.now += seconds[turns % len(seconds)]
            turns += 1

        return call


SETTINGS = Settings(seconds=10.0, repetitions=8, threads=1)


@pytest.mark.parametrize(
    ("values", "expected"),
    {
        "one": ([3.0], (3.0, 3.0, 3.0)),
        "two": ([2.0, 1.0], (1.25, 1.5, 1.75)),
        "five, unsorted": ([5.0, 1.0, 4.0, 2.0, 3.0], (2.0, 3.0, 4.0)),
    }.values(),
)
def test_quartiles(values: list[float], expected: tuple[float, float, float]) -> None:
    assert harness.quartiles(values) == pytest.approx(expected)


def test_quartiles_of_nothing() -> None:
    with pytest.raises(ValueError, match="at least one entry"):
        harness.quartiles([])


def test_ratio_pairs_neighbours_in_time() -> None:
    # The machine becomes twice as slow halfway: the ratio of paired turns does not notice.
    fast = Timing("fast", list(range(8)), [1.0] * 4 + [2.0] * 4)
    slow = Timing("slow", [0, 3, 4, 7], [10.0, 10.0, 20.0, 20.0])
    ratio = harness.ratio(slow, fast)
    assert (ratio.low, ratio.middle, ratio.high) == (10.0, 10.0, 10.0)
    back = harness.ratio(fast, slow)
    assert back.middle == pytest.approx(0.1)
    assert str(ratio) == "10.0 (10.0-10.0)"
    assert str(back) == "0.10 (0.10-0.10)"


def test_medians_of_what_calls_take() -> None:
    clock = Clock()
    contenders = [
        Contender("steady", clock.takes(0.5)),
        Contender("twice as long", clock.takes(1.0)),
    ]
    timings = harness.run_contenders(contenders, SETTINGS, clock=clock)
    assert list(timings) == ["steady", "twice as long"]
    assert timings["steady"].median == pytest.approx(0.5)
    assert timings["steady"].repetitions == 8
    assert harness.ratio(timings["twice as long"], timings["steady"]).middle == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("seconds", "repetitions"), {"short": (0.1, 8), "long": (4.0, 3), "longer": (60.0, 1)}.values()
)
def test_long_calls_get_fewer_repetitions(seconds: float, repetitions: int) -> None:
    clock = Clock()
    contenders = [Contender("quick", clock.takes(0.1)), Contender("it", clock.takes(seconds))]
    timings = harness.run_contenders(contenders, SETTINGS, clock=clock)
    assert timings["it"].repetitions == repetitions
    assert timings["quick"].rounds == list(range(8))
    assert timings["it"].rounds == sorted(set(timings["it"].rounds))


def test_a_very_long_call_is_made_once() -> None:
    clock, calls = Clock(), []
    minute = clock.takes(60.0)

    def call() -> None:
        calls.append(None)
        minute()

    contenders = [Contender("it", call), Contender("quick", clock.takes(1.0))]
    timings = harness.run_contenders(contenders, SETTINGS, clock=clock)
    assert len(calls) == 1
    assert timings["it"].median == pytest.approx(60.0)
    assert harness.ratio(timings["it"], timings["quick"]).middle == pytest.approx(60.0)


def test_short_calls_are_repeated_within_a_turn() -> None:
    clock, calls = Clock(), []
    short = clock.takes(1e-5)

    def call() -> None:
        calls.append(None)
        short()

    timing = harness.run_contenders([Contender("it", call)], SETTINGS, clock=clock)["it"]
    assert timing.median == pytest.approx(1e-5)
    assert len(calls) > 100 * timing.repetitions


def test_before_is_not_timed() -> None:
    clock = Clock()
    contender = Contender("it", clock.takes(1e-5), before=clock.takes(3.0))
    timing = harness.run_contenders([contender], SETTINGS, clock=clock)["it"]
    assert timing.median == pytest.approx(1e-5)


def test_contenders_of_one_name() -> None:
    same = [Contender("it", lambda: None)] * 2
    with pytest.raises(ValueError, match="different names"):
        harness.run_contenders(same, SETTINGS)


def test_table_lines_up() -> None:
    table = harness.markdown_table(["case", "a"], [["1, 2", "3.00"], ["10, 200", "-"]])
    assert table.splitlines() == [
        "| case    |    a |",
        "| ------- | ---: |",
        "| 1, 2    | 3.00 |",
        "| 10, 200 |    - |",
    ]
    with pytest.raises(ValueError, match="2 cells"):
        harness.markdown_table(["case", "a"], [["1"]])


@pytest.mark.parametrize(
    ("seconds", "text"),
    {"0.0000123": (1.23e-5, "0.0123"), "0.5": (0.5, "500"), "12": (12.3456e-3, "12.3")}.values(),
)
def test_milliseconds(seconds: float, text: str) -> None:
    assert harness.milliseconds(seconds) == text


def test_quick_runs_stay_away_from_the_pages() -> None:
    threads = torch.get_num_threads()
    try:
        quick = harness.parse_settings(None, ["--quick", "--threads", "1"])
        real = harness.parse_settings(None, ["--threads", "1", "--seconds", "2"])
    finally:
        torch.set_num_threads(threads)
    assert quick.output != Settings().output == real.output
    assert (real.seconds, real.threads, real.quick) == (2.0, 1, False)


# ---------------------------------------------------------------------- layers

LAYERS = {
    "made_flows": lambda: _peers.Ours(5, 16),
    "made_flows (eager)": lambda: _peers.Ours(5, 16, "eager"),
    "Pyro": lambda: _peers.Pyro(5, 16),
    "nflows": lambda: _peers.NFlows(5, 16),
    "zuko": lambda: _peers.Zuko(5, 16),
}
PACKAGES = {"Pyro": "pyro", "nflows": "nflows", "zuko": "zuko"}


@pytest.mark.parametrize("name", LAYERS)
def test_slow_direction_inverts_the_fast_one(name: str) -> None:
    pytest.importorskip(PACKAGES.get(name, "torch"))
    layer = LAYERS[name]()
    assert layer.name == name
    x = torch.randn(7, 5)
    with torch.no_grad():
        z, log_det = layer.fast(x)
        torch.testing.assert_close(layer.slow(z), x, atol=1e-4, rtol=1e-4)
    jacobian = torch.func.jacrev(lambda row: layer.fast(row[None])[0][0])(x[0])
    torch.testing.assert_close(log_det[0], torch.linalg.slogdet(jacobian).logabsdet)


def test_gradients_reach_all_weights() -> None:
    for contender in inverse.gradient_contenders((4, 8, 3), torch.device("cpu")):
        if contender.before is not None:
            contender.before()
        contender.call()
    layer = _peers.Ours(4, 8)
    z = torch.randn(3, 4)
    forward.training_step(layer.module, lambda: layer.slow(z).square().mean())()
    assert all(weight.grad is not None for weight in layer.module.parameters())


# ---------------------------------------------------------------------- pages

TINY = Settings(seconds=1e-4, repetitions=2, threads=1, quick=True)


def test_page_of_the_fast_direction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(forward, "QUICK_SIZES", [(3, 8, 2)])
    settings = replace(TINY, output=tmp_path)
    page = harness.write_page("forward", "Title", forward.measure(settings), settings).read_text()
    assert page.startswith("# Title\n\n")
    assert "numbers mean nothing" in page
    assert page.count("\n| 3, 8, 2") == 2
    assert torch.__version__ in page
    assert "written to" in capsys.readouterr().out


def test_growth_is_drawn_and_tabulated(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from benchmarks._plots import growth_plot

    measured: dict[str, dict[str, Timing]] = {}
    sizes = {2: (2, 8, 3), 4: (4, 8, 3)}
    lines = inverse.growth("features", sizes, TINY, measured)
    expected = 3 + len(_peers.installed_peers())
    assert len(lines) == expected
    assert all(list(line) == [2, 4] for line in lines.values())
    table = inverse.growth_table("features D", lines)
    assert len(table.splitlines()) == 4
    assert "growth with features: 4, 8, 3" in harness.details(measured)
    growth_plot(tmp_path / "growth.png", "Title", "features D", lines)
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux' own accounts")
def test_peak_memory_counts_what_was_freed_again() -> None:
    from benchmarks import _memory

    before = _memory._start()
    torch.ones(8 * 2**20)
    assert _memory._peak() - before > 24 * 2**20


def test_installed_peers_are_those_that_can_be_imported() -> None:
    names = {peer.name for peer in _peers.installed_peers()}
    assert names == {
        name for name, package in PACKAGES.items() if importlib.util.find_spec(package)
    }
