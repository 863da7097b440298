"""Small stages with which the tests exercise artifacts, recipes and the command line."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import Field

from hybridsnn.artifacts import Artifact
from hybridsnn.config import Choice, StageConfig
from hybridsnn.stages.base import Environment, Stage, Work

METHODS = {"plain": 1, "stdb": 2, "linear": 3}


class TrainConfig(StageConfig):
    """Counts epochs, and keeps count in the scratch folder.

    A second paragraph.
    """

    epochs: int = Field(3, gt=0, description="How often to count.")
    rate: float = Field(0.1, description="A number that changes nothing.")
    method: Annotated[str, Choice(METHODS, "method")] = Field("plain", description="How to count.")
    other_method: Annotated[str, Choice(METHODS, "method")] | None = Field(None, description="How else to count.")
    bias: bool = Field(True, description="Count from one.")
    mode: Literal["up", "down"] = Field("up", description="Direction.")
    weights: Path | None = Field(None, description="A file to begin with.", json_schema_extra={"location": True})
    seed: int = Field(0, description="Seed.")


class SmallConfig(StageConfig):
    value: int = Field(1, description="Any number.")


def write_accuracy(folder: Path, split: str, steps: int, accuracy: float) -> None:
    rows = [f"toy,{split},,{step},,accuracy,{accuracy}" for step in range(1, steps + 1)]
    (folder / "metrics.csv").write_text("\n".join(["stage,split,epoch,step,layer,metric,value", *rows]) + "\n")


def train(work: Work) -> None:
    config = cast(TrainConfig, work.config)
    memory = work.scratch / "epochs.json"
    ran_before = json.loads(memory.read_text()) if memory.exists() else 0
    for epoch in work.environment.progress.track(range(ran_before, config.epochs), "epochs", config.epochs):
        if os.environ.get("TOY_KILL_AT") == str(epoch):
            os._exit(9)
        if os.environ.get("TOY_INTERRUPT_AT") == str(epoch):
            raise KeyboardInterrupt
        memory.write_text(json.dumps(epoch + 1))
    (work.folder / "weights.txt").write_text(f"{config.epochs} {config.rate}\n")
    (work.folder / "nested").mkdir()
    (work.folder / "nested" / "note.txt").write_text("nested\n")
    write_accuracy(work.folder, "validation", 1, 0.5)
    work.environment.progress.say(f"resumed at {ran_before}")
    work.data = ("toy-data", "0" * 64)


def fail(work: Work) -> None:
    (work.folder / "half.txt").write_text("half")
    raise ValueError("broken")


def small(work: Work) -> None:
    config = cast(SmallConfig, work.config)
    content = [parent.file("config.yaml").read_text() for parent in work.parents]
    (work.folder / "value.json").write_text(json.dumps([config.value, content]))


def evaluate(work: Work) -> None:
    write_accuracy(work.folder, "test", 4, 0.875)


def report(work: Work) -> None:
    lines = [f"{parent.name},87.50" for parent in work.parents]
    (work.folder / "accuracy.csv").write_text("\n".join(["network,accuracy (%)", *lines]) + "\n")
    (work.folder / "index.html").write_text("<html></html>")


def outside(config: StageConfig, environment: Environment) -> Mapping[str, str]:
    return {"data": str(environment.data)}


def named(name: str) -> Any:
    def folder(config: StageConfig, parents: tuple[Artifact, ...]) -> str:
        return "-".join([name, *(parent.name for parent in parents[:1])])

    return folder


TOYS: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage("toy-train", "Count epochs.", TrainConfig, (), "ann", train, lambda config, parents: "ann",
              example="hybridsnn toy-train --epochs 5"),
        Stage("toy-fail", "Break.", SmallConfig, (), "ann", fail, lambda config, parents: "broken"),
        Stage("toy-outside", "Read elsewhere.", SmallConfig, (), "ann", small, lambda config, parents: "outside",
              outside=outside),
        Stage("toy-convert", "Convert.", SmallConfig, ("ann",), "snn", small, lambda config, parents: "converted"),
        Stage("toy-tune", "Tune.", SmallConfig, ("snn",), "snn", small, lambda config, parents: "tuned"),
        Stage("toy-evaluate", "Evaluate.", SmallConfig, ("ann", "snn"), "evaluation", evaluate, named("evaluate"),
              each=True),
        Stage("toy-report", "Report.", SmallConfig, ("evaluation",), "report", report, named("report"), many=True),
    )
}  # fmt: skip


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder, to tell that nothing has changed."""
    return {
        path.relative_to(folder).as_posix(): None if path.is_dir() else path.read_bytes() for path in folder.rglob("*")
    }
