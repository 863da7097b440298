"""`evaluate`: one pass over images gives accuracy at every step, firing rates and spikes per image."""

import time
from typing import Literal, cast

import torch
from pydantic import Field

from hybridsnn.config import StageConfig
from hybridsnn.data import Batches
from hybridsnn.errors import ConfigError, OutOfTimeError
from hybridsnn.evaluation.accuracy import ann_accuracy, snn_accuracy
from hybridsnn.evaluation.anytime import early_accuracy, exit_margin, images_needed
from hybridsnn.evaluation.measurement import Measurement, Result, Rows, join
from hybridsnn.model import SpikingModel
from hybridsnn.snapshot import SAVE_EVERY, load_snapshot, save_snapshot
from hybridsnn.stages.base import Stage, Work
from hybridsnn.stages.compute import PRECISION, Precision, fabric_for
from hybridsnn.stages.images import open_again
from hybridsnn.stages.networks import load_network, write_metrics
from hybridsnn.stages.precision import settle


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
    steps = None if description.spiking is None else config.timesteps or description.spiking.timesteps
    fabric = settle(work, fabric, config.precision, network, lambda: source.epoch(0), steps)
    with fabric.autocast():
        if description.spiking is None:
            rows = _pass(work, "evaluate", source, ann_accuracy(network, fabric.device))
        else:
            spiking = cast(SpikingModel, network)
            timesteps = config.timesteps or description.spiking.timesteps
            early = []
            if config.exit_confidence is not None:
                known = pictures.measuring("validation", config.batch_size)
                early = _leaving_early(spiking, source, known, work, fabric.device, timesteps)
            whole = snn_accuracy(spiking, fabric.device, timesteps=timesteps, seed=config.seed)
            rows = _pass(work, "evaluate", source, whole) + early
    write_metrics(work.folder, STAGE.name, config.split, rows)


def _leaving_early(
    network: SpikingModel, source: Batches, known: Batches, work: Work, device: torch.device, timesteps: int
) -> Rows:
    """Rows of images that leave when their margin is that at which the known images show it to be safe."""
    config = cast(EvaluateConfig, work.config)
    confidence = cast(float, config.exit_confidence)
    if len(known.positions) < (needed := images_needed(confidence)):
        raise ConfigError(
            f"evaluate.exit_confidence: got {confidence}, which takes {needed:,} validation images to promise, but the "
            f"network kept back {len(known.positions):,}; lower it, or keep more back (--validation of the first stage)"
        )
    run = {"timesteps": timesteps, "seed": config.seed}
    margin = _pass(work, "calibrate", known, exit_margin(network, device, confidence=confidence, **run))
    return _pass(work, "leave early", source, early_accuracy(network, device, margin=margin, **run))


def _pass(work: Work, doing: str, source: Batches, measurement: Measurement[Result]) -> Result:
    """What a pass over the images finds out; one that was cut off goes on after the last batch that was kept.

    Raises:
        OutOfTimeError: between two batches, once the time is up.
    """
    environment, name, length = work.environment, work.parents[0].name, len(source)
    path = work.scratch / f"{doing.replace(' ', '-')}.safetensors"
    parts, done = [], 0
    if kept := load_snapshot(path):
        words, measured = kept
        parts, done = [measured], words["batches"]
        if done < length:
            environment.progress.say(f"{doing} {name}: resuming after batch {done} of {length}")
    stopping, saved = False, time.monotonic()
    for batch in environment.progress.track(source.epoch(0, done), f"{doing} {name}", length - done):
        parts.append(measurement.of_batch(batch))
        done += 1
        stopping = done < length and environment.time_is_up()
        if stopping or done == length or time.monotonic() - saved > SAVE_EVERY:
            parts = [join(parts)]
            save_snapshot(path, {"batches": done}, parts[0])
            saved = time.monotonic()
        if stopping:
            break  # out of the loop first, so that whatever shows progress ends before the error
    if stopping:
        raise OutOfTimeError(
            f"stopped in '{doing}' after batch {done} of {length}, as the time is up; the same command goes on there"
        )
    return measurement.result(join(parts))


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
