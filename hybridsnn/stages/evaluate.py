"""`evaluate`: one pass over images gives accuracy at every step, firing rates and spikes per image."""

from collections.abc import Iterator
from typing import Any, Literal, cast

import torch
from pydantic import Field

from hybridsnn.anytime import calibrate, evaluate_early, images_needed
from hybridsnn.batch import Batch
from hybridsnn.config import StageConfig
from hybridsnn.data import Batches
from hybridsnn.errors import ConfigError
from hybridsnn.metrics import evaluate_ann, evaluate_snn
from hybridsnn.model import SpikingModel
from hybridsnn.stages.base import Stage, Work
from hybridsnn.stages.compute import PRECISION, Precision, fabric_for
from hybridsnn.stages.images import open_again
from hybridsnn.stages.networks import load_network, write_metrics


class EvaluateConfig(StageConfig):
    """Measures each network of the run, or the one that `--from` names.

    One simulation gives the accuracy for every number of time steps up to T. This is the only stage that sees the
    test images.
    """

    split: Literal["test", "validation"] = Field("test", description="Which images.")
    images: int | None = Field(
        None, gt=0, description="How many of them, of each class its share, the same for every network; unset: all."
    )
    timesteps: int | None = Field(None, gt=0, description="Time steps T; unset: those of the network.")
    batch_size: int = Field(100, gt=0, description="Images at once; changes no result.")
    precision: Precision = Field("32-true", description=PRECISION)
    exit_confidence: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Measure too what becomes of images that leave as soon as, with this probability, their answer is "
        "that of all T steps; learned from the validation images. Unset: all run to the end.",
    )
    seed: int = Field(0, ge=0, description="Seed of random spikes.")


def run(work: Work) -> None:
    """Evaluate and save; see `EvaluateConfig`."""
    config = cast(EvaluateConfig, work.config)
    fabric = fabric_for(work, config.precision)
    network, description = load_network(work.parents[0])
    if description.spiking is None and config.exit_confidence is not None:
        raise ConfigError(
            f"evaluate.exit_confidence: got {config.exit_confidence} for {work.parents[0].path}, a network without "
            "time steps to leave at; leave it out, or name spiking networks with --from"
        )
    pictures = open_again(description.images, work).on(fabric.device)
    source = pictures.measuring(config.split, config.batch_size, config.images)
    if len(source) == 0:
        raise ConfigError(f"evaluate.split: '{config.split}' has no images; the network kept none back for validation")
    network = fabric.to_device(network)
    with fabric.autocast():
        if description.spiking is None:
            rows = evaluate_ann(network, _tracked("evaluate", source, work), fabric.device)
        else:
            spiking = cast(SpikingModel, network)
            timesteps = config.timesteps or description.spiking.timesteps
            early = []
            if config.exit_confidence is not None:
                known = pictures.measuring("validation", config.batch_size)
                early = _leaving_early(spiking, source, known, work, fabric.device, timesteps)
            batches = _tracked("evaluate", source, work)
            rows = evaluate_snn(spiking, batches, fabric.device, timesteps=timesteps, seed=config.seed) + early
    write_metrics(work.folder, STAGE.name, config.split, rows)


def _leaving_early(
    network: SpikingModel, source: Batches, known: Batches, work: Work, device: torch.device, timesteps: int
) -> list[dict[str, Any]]:
    """Rows of images that leave when their margin is that at which the known images show it to be safe."""
    config = cast(EvaluateConfig, work.config)
    confidence = cast(float, config.exit_confidence)
    if len(known.positions) < (needed := images_needed(confidence)):
        raise ConfigError(
            f"evaluate.exit_confidence: got {confidence}, which takes {needed:,} validation images to promise, but the "
            f"network kept back {len(known.positions):,}; lower it, or keep more back (--validation of the first stage)"
        )
    run = {"timesteps": timesteps, "seed": config.seed}
    margin = calibrate(network, _tracked("calibrate", known, work), device, confidence=confidence, **run)
    return evaluate_early(network, _tracked("leave early", source, work), device, margin=margin, **run)


def _tracked(doing: str, source: Batches, work: Work) -> Iterator[Batch]:
    return work.track(source.epoch(0), f"{doing} {work.parents[0].name}", len(source))


STAGE = Stage(
    name="evaluate",
    summary="Measure networks on the test images.",
    config=EvaluateConfig,
    consumes=("ann", "snn"),
    produces="evaluation",
    run=run,
    folder=lambda config, parents: f"evaluate-{parents[0].name}",
    each=True,
    example="hybridsnn evaluate",
)
