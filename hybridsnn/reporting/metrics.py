"""Selects single quantities from metrics in long form."""

import math

import pandas as pd


def total(metrics: pd.DataFrame, metric: str) -> float:
    """Value of the metric for the whole network, the latest if there are several; NaN if it was not measured."""
    rows = metrics[(metrics["metric"] == metric) & _is_empty(metrics["layer"])]
    return float(rows["value"].iloc[-1]) if len(rows) else math.nan


def by_step(metrics: pd.DataFrame, metric: str) -> pd.Series:
    """Values of the metric indexed by time step, ascending."""
    return _indexed(metrics[(metrics["metric"] == metric) & _is_empty(metrics["layer"])], "step")


def by_epoch(metrics: pd.DataFrame, metric: str, split: str) -> pd.Series:
    """Values of the metric on a split indexed by epoch, ascending."""
    return _indexed(metrics[(metrics["metric"] == metric) & (metrics["split"] == split)], "epoch")


def kept_epoch(history: pd.DataFrame) -> int | None:
    """The epoch whose weights a training kept, 0 for those it started with; None if the history does not say."""
    rows = history[history["metric"] == "kept-epoch"]
    return int(rows["value"].iloc[-1]) if len(rows) else None


def by_layer(metrics: pd.DataFrame, metric: str) -> pd.Series:
    """Values of the metric indexed by layer, in the order of the network."""
    rows = metrics[(metrics["metric"] == metric) & ~_is_empty(metrics["layer"])]
    return pd.Series(rows["value"].to_numpy(dtype=float), index=[str(layer) for layer in rows["layer"]])


def best_windows(metrics: pd.DataFrame) -> pd.DataFrame:
    """The window of the readout with the highest accuracy for each last step, the longest if several have it.

    Columns `start` (its first step), `accuracy` and `whole`, the accuracy of the longest window; index: its last step.
    """
    rows = metrics[metrics["metric"] == "window-accuracy"]
    if not len(rows):
        return pd.DataFrame(columns=["start", "accuracy", "whole"])
    rows = rows.astype({"step": int, "start": int}).sort_values(["step", "start"])
    by_step = rows.groupby("step")
    best = rows.loc[by_step["value"].idxmax()].set_index("step")  # the first of several
    return pd.DataFrame({"start": best["start"], "accuracy": best["value"], "whole": by_step["value"].first()})


def _is_empty(cells: pd.Series) -> pd.Series:
    return cells.isna() | (cells.astype(str) == "")


def _indexed(rows: pd.DataFrame, column: str) -> pd.Series:
    position = pd.to_numeric(rows[column], errors="coerce")  # empty cells may be NaN or ""
    rows = rows[position.notna()]
    index = position[position.notna()].to_numpy(dtype=int)
    return pd.Series(rows["value"].to_numpy(dtype=float), index=index).sort_index()
