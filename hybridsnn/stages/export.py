"""`export`: a spiking network as files for other tools, checked spike for spike before they are written."""

from typing import Annotated, Any, ClassVar, Literal, Self, cast

import torch
from pydantic import Field, model_validator

from hybridsnn.artifacts import write_json
from hybridsnn.config import Choice
from hybridsnn.errors import ConversionError
from hybridsnn.exporters import EXPORTERS, Exporter
from hybridsnn.exporters.base import Source
from hybridsnn.exporters.comparison import Verdict
from hybridsnn.model import IntegerModel, SpikingModel
from hybridsnn.options import OptionSettings
from hybridsnn.program.graph import Node
from hybridsnn.program.ranges import Range
from hybridsnn.stages.base import Stage, Work
from hybridsnn.stages.images import open_again
from hybridsnn.stages.integers import as_integers, largest_input
from hybridsnn.stages.networks import ModelDescription, load_network, write_metrics

INTERFACE, VERDICTS = "export.json", "verdicts.json"


class ExportConfig(OptionSettings):
    """Writes a spiking network as files that other tools run, and how to feed them (export.json).

    Before anything is written, the files are run on images that are no test images, and every spike of every layer at
    every step is compared with that of the network: verdicts.json. An ONNX file with a spike that differs is refused.
    With `--weights int8` weights, thresholds and membranes are integers and nothing is rounded at run time.
    """

    chooser: ClassVar[str] = "format"

    format: Annotated[str, Choice(EXPORTERS, "format")] = Field("onnx-step", description="Format of the files.")
    weights: Literal["float32", "int8"] = Field(
        "float32", description="float32: as they are; int8: integers of --weight-bits. NIR is always of integers."
    )
    weight_bits: int = Field(8, ge=2, le=16, description="Bits of integer weights; ONNX takes up to 8.")
    timesteps: int | None = Field(None, gt=0, description="Number of time steps T; unset: that of the network.")
    images: int = Field(100, gt=0, description="Number of images on which the files are checked.")
    tolerance: float = Field(
        0.0,
        ge=0,
        description="Share of the threshold within which the first spike that differs in an image may lie: runtimes "
        "add in another order, which in float32 moves a membrane by about 1e-6. 0: no spike may differ.",
    )

    def exporter(self) -> Exporter:
        """The format with its options."""
        return cast(Exporter, self.chosen())

    @property
    def integers(self) -> bool:
        """Whether the network is exported as integers."""
        return self.weights == "int8" or EXPORTERS[self.format].integers

    @model_validator(mode="after")
    def _bytes(self) -> Self:
        if self.format.startswith("onnx") and self.weights == "int8" and self.weight_bits > 8:
            raise ValueError(f"weight_bits: got {self.weight_bits}, must be at most 8 for ONNX")
        return self


def run(work: Work) -> None:
    """Export, check and save; see `ExportConfig`."""
    config = cast(ExportConfig, work.config)
    exporter = config.exporter()
    exporter.require()
    network, description = load_network(work.parents[0])
    model = cast(SpikingModel, network)
    assert description.spiking is not None
    timesteps = config.timesteps or description.spiking.timesteps
    found: dict[Node, Range] = {}
    if config.integers:
        model, found = as_integers(model, description, timesteps, bits=config.weight_bits, grid=exporter.grid)
    sample = tuple(description.network.input_shape)
    source = Source(model, sample, timesteps, largest_input(description, integers=config.integers))
    export = exporter.export(source)
    work.environment.progress.say(f"export: checks {', '.join(export.files)} on {config.images} images")
    frames, split = _frames(model, description, timesteps, config.images, work)
    verdicts = exporter.check(source, export, frames, config.tolerance)
    for verdict in verdicts:
        work.environment.progress.say(str(verdict))
        if verdict.verdict == "different" and verdict.target in exporter.must_agree:
            raise ConversionError(f"export: {verdict}; {_remedy(config, verdict)}")
    for name, content in export.files.items():
        (work.folder / name).write_bytes(content)
    write_json(work.folder / INTERFACE, _interface(model, description, timesteps, config) | export.interface)
    write_json(work.folder / VERDICTS, [verdict.record() for verdict in verdicts])
    rows = [{"metric": f"differing-spikes: {v.target}", "value": float(v.differing)} for v in verdicts if v.images]
    rows += [
        {"layer": node.name, "metric": "largest-value", "value": value.extent}
        for node, value in found.items()
        if node.ends_path
    ]
    write_metrics(work.folder, STAGE.name, split, rows)


def _remedy(config: ExportConfig, verdict: Verdict) -> str:
    if config.integers:
        return "integers must not differ: the tool computes something else"
    reason = "sums of float32 depend on their order"
    return f"{reason}; use --weights int8, which does not round, or a --tolerance above {_distance(verdict):.1e}"


def _distance(verdict: Verdict) -> float:
    """How far from its threshold the first spike that differs was."""
    return abs(verdict.first.distance) if verdict.first else 0.0


def _frames(
    model: SpikingModel, description: ModelDescription, timesteps: int, count: int, work: Work
) -> tuple[list[torch.Tensor], str]:
    """Frames `[T, B, ...]` of images that are not for testing, a few at a time; and of which split they are."""
    images = open_again(description, work)
    split = "validation" if len(images.measuring("validation", 1)) >= count else "train"
    batches = images.measuring(split, 20, min(count, len(images.measuring(split, 1))))
    return [model.encoder(batch.images, batch.indices, timesteps) for batch in batches.epoch(0, 0)], split


def _interface(
    model: SpikingModel, description: ModelDescription, timesteps: int, config: ExportConfig
) -> dict[str, Any]:
    """What a program that feeds the files has to know."""
    frame = "frame = (pixel / 255 - mean) / std / scale"
    return {
        "timesteps": timesteps,
        "classes": description.classes,
        "mean": list(description.preprocessing.mean),
        "std": list(description.preprocessing.std),
        "scale": model.encoder.scale,
        "encoder": model.encoder.name,
        "frames": f"{frame}, rounded to integers" if model.encoder.whole else frame,
        "integers": config.integers,
        "weight_bits": config.weight_bits if config.integers else 32,
        "readout_scale": model.readout_scale if isinstance(model, IntegerModel) else 1.0,
    }


STAGE = Stage(
    name="export",
    summary="Write a spiking network as files for other tools.",
    config=ExportConfig,
    consumes=("snn",),
    produces="export",
    run=run,
    folder=lambda config, parents: "-".join(
        [
            "export",
            (own := cast(ExportConfig, config)).format,
            *([f"int{own.weight_bits}"] if own.integers else []),
            parents[0].name,
        ]
    ),
    example="hybridsnn export --format onnx --weights int8",
)
