"""Ceilings, layer-synchronous runs, windows, delayed readouts and pre-steps: from the command line to the report."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from test_stages import accuracies, make, metrics, of, refuse, succeed

from hybridsnn.artifacts import Artifact
from hybridsnn.stages.networks import COLUMNS, START, describe


def steps_of(evaluation: Artifact, metric: str) -> list[int]:
    rows = metrics(evaluation)
    return rows.loc[rows["metric"] == metric, "step"].astype(int).tolist()


def one(evaluation: Artifact, metric: str) -> float:
    (value,) = accuracies(evaluation, metric)
    return value


@pytest.fixture(scope="module")
def measured(run: Path) -> dict[str, Artifact]:
    """The converted network of the run, T = 8, measured in each way."""
    converted = of(run, "converted")
    ways: dict[str, dict[str, Any]] = {
        "plain": {}, "every": {"ceiling": "every", "windows": True}, "waiting": {"operation": "layer-synchronous"},
    }  # fmt: skip
    return {name: make(run, "evaluate", converted, batch_size=90, **settings) for name, settings in ways.items()}


def test_the_ceiling_is_measured_beside_the_accuracy(measured: dict[str, Artifact], run: Path) -> None:
    plain, every = measured["plain"], measured["every"]
    assert steps_of(plain, "ceiling") == [8] and steps_of(every, "ceiling") == list(range(1, 9))
    limits = accuracies(every, "ceiling")
    assert limits[-1] == one(plain, "ceiling") and limits[0] == accuracies(plain)[0]
    assert limits[-1] > accuracies(of(run, "ann-test"))[-1] - 0.1  # which streaming is below at few steps
    assert one(plain, "latency") == one(every, "latency") == 8
    assert accuracies(make(run, "evaluate", of(run, "converted"), batch_size=17), "ceiling") == limits[-1:]
    poisson = make(run, "convert", of(run, "ann"), name="random", encoder="poisson", timesteps=4)
    assert not accuracies(make(run, "evaluate", poisson), "ceiling")


def test_layers_that_wait_reach_the_ceiling(measured: dict[str, Artifact]) -> None:
    plain, waiting = measured["plain"], measured["waiting"]
    assert waiting.name.startswith("evaluate-converted-layer-synchronous")
    assert one(waiting, "layer-synchronous-accuracy") == one(plain, "ceiling")
    assert one(waiting, "latency") == 3 * 8  # three layers of neurons
    assert not {"accuracy", "loss", "ceiling"} & set(metrics(waiting)["metric"])
    spikes = [accuracies(evaluation, "spikes-per-image") for evaluation in (plain, waiting)]
    assert spikes[0][0] == pytest.approx(spikes[1][0])  # of the first layer, whose current does not change


def test_windows_have_a_column_of_their_own(measured: dict[str, Artifact]) -> None:
    assert tuple(metrics(measured["plain"]).columns) == COLUMNS
    rows = metrics(measured["every"])
    assert tuple(rows.columns) == (*COLUMNS, START)
    windows = rows[rows["metric"] == "window-accuracy"]
    assert len(windows) == 8 * 9 // 2 and rows.loc[rows["metric"] != "window-accuracy", START].isna().all()
    assert windows.loc[windows[START] == 1, "value"].tolist() == accuracies(measured["every"])
    plain = metrics(measured["plain"])
    others = rows[~rows["metric"].isin(["window-accuracy", "ceiling"])].drop(columns=START)
    assert others["value"].tolist() == plain.loc[plain["metric"] != "ceiling", "value"].tolist()


def test_the_report_keeps_operations_apart(measured: dict[str, Artifact], run: Path) -> None:
    parents = (of(run, "ann-test"), measured["every"], measured["waiting"])
    report = make(run, "report", *parents, name="report-of-latency")
    table = pd.read_csv(report.file("accuracy.csv")).set_index("network")
    waiting = table.loc["converted, layer-synchronous"]
    assert waiting["latency (steps)"] == 24 and waiting["T"] == 8
    filled = set(waiting.dropna().index) - {"stage", "T", "latency (steps)"}
    assert filled == {"layer-synchronous (%)"}
    limit = round(100 * accuracies(measured["every"], "ceiling")[-1], 2)
    assert waiting["layer-synchronous (%)"] == table.loc["converted", "ceiling (%)"] == limit
    assert pd.isna(table.loc["converted", "layer-synchronous (%)"]) and table.loc["converted", "latency (steps)"] == 8

    windows = pd.read_csv(report.file("windows.csv"))
    rows = metrics(measured["every"])
    rows = rows[rows["metric"] == "window-accuracy"]
    assert windows["T"].tolist() == list(range(1, 9))
    for _, best in windows.iterrows():
        values = rows[rows["step"] == best["T"]].set_index(START)["value"]
        start = int(best["best window"].split("–")[0])
        assert best["accuracy (%)"] == pytest.approx(100 * values.max())
        assert start == values.index[values == values.max()].min()
        assert best["of all steps (%)"] == pytest.approx(100 * values[1])
    assert table.loc["converted", "best window"] == windows["best window"].iloc[-1]
    rates = pd.read_csv(report.file("firing_rates.csv"))
    assert list(rates.columns) == ["layer", "converted", "converted, layer-synchronous"]
    page = report.file("index.html").read_text(encoding="utf-8")
    for told in ("is\nunevenness", "counts every step until the answer", "<code>--readout-from</code>"):
        assert told in page


def test_a_delayed_readout_is_kept(workplace: Path) -> None:
    ann = of(workplace, "ann")
    usual = make(workplace, "convert", ann, name="usual", timesteps=6)
    late = make(workplace, "convert", ann, name="late", timesteps=6, readout_from=4)
    spiking = describe(late).spiking
    assert spiking is not None and (spiking.readout_from, spiking.timesteps) == (4, 6)
    rows = metrics(make(workplace, "evaluate", usual, windows=True))
    rows = rows[(rows["metric"] == "window-accuracy") & (rows[START] == 4)]
    evaluation = make(workplace, "evaluate", late)
    assert steps_of(evaluation, "accuracy") == [4, 5, 6] and one(evaluation, "latency") == 6
    assert accuracies(evaluation) == rows["value"].tolist()
    early = make(workplace, "evaluate", late, exit_confidence=0.9)
    assert accuracies(early, "exit-share")[:3] == [0, 0, 0]
    message = refuse("evaluate", "--from", "late", "--timesteps", "3")
    assert "evaluate.timesteps: got 3, must be at least 4, the first step that" in message
    assert "because its output is read from step 4 on" in refuse("evaluate", "--from", "late", "--ceiling", "every")
    message = refuse("finetune", "--from", "late")
    assert "is read from step 4 on; fine-tune a network that was converted without --readout-from" in message


def test_pre_steps_are_part_of_the_time(workplace: Path) -> None:
    ann, fitted = of(workplace, "ann"), {"balance": "lloyd", "calibration_images": 64}
    pre = make(workplace, "convert", ann, name="pre", timesteps=7, pre_steps=3, **fitted)
    short = make(workplace, "convert", ann, name="short", timesteps=4, **fitted)
    assert metrics(pre)["value"].tolist() == metrics(short)["value"].tolist()  # fitted to the steps that follow
    evaluation = make(workplace, "evaluate", pre)
    assert steps_of(evaluation, "accuracy") == [4, 5, 6, 7] and one(evaluation, "latency") == 7
    assert one(evaluation, "ceiling") == one(make(workplace, "evaluate", short), "ceiling")
    early = make(workplace, "evaluate", pre, exit_confidence=0.9)
    assert accuracies(early, "exit-share")[:3] == [0, 0, 0]
    message = refuse("evaluate", "--from", "pre", "--operation", "layer-synchronous")
    assert "cannot run layer-synchronously, because it has 3 pre-steps; use 'streaming'" in message
    assert "is read from step 4 on" in refuse("finetune", "--from", "pre")
    assert "test latency: 7 steps" in succeed("evaluate", "--from", "pre", "--images", "20")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("convert --readout-from 0", "convert.readout_from: got 0, must be greater than or equal to 1"),
        ("convert --readout-from 9 --timesteps 8", "convert.readout_from: got 9, must be at most the 8 time steps"),
        ("convert --pre-steps -1", "convert.pre_steps: got -1"),
        ("convert --pre-steps 8 --timesteps 8", "convert.pre_steps: got 8, must be below the 8 time steps"),
        ("convert --pre-steps 2 --encoder poisson", "convert.pre_steps: got 2 with encoder 'poisson' and reset 'soft'"),
        ("convert --pre-steps 2 --reset hard", "convert.pre_steps: got 2 with encoder 'direct' and reset 'hard'"),
        ("evaluate --operation both", "evaluate.operation: got 'both', must be 'streaming' or 'layer-synchronous'"),
        ("evaluate --operation layer-synchronous", "evaluate.operation: got layer-synchronous for checkpoints/default"),
        ("evaluate --windows --from ann", "evaluate.windows: got True for checkpoints/default/ann, an ANN"),
        ("evaluate --ceiling every --from ann", "evaluate.ceiling: got every for checkpoints/default/ann, an ANN"),
        ("evaluate --windows --timesteps 65 --from converted", "evaluate.windows: got 65 time steps, must be at most"),
        (
            "evaluate --windows --operation layer-synchronous --from converted",
            "evaluate.windows: got True with operation 'layer-synchronous'; leave one of them out",
        ),
    ],
)
def test_bad_settings(arguments: str, message: str, unchanged: Path) -> None:
    assert message in refuse(*arguments.split())
