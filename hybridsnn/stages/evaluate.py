"""`evaluate`: accuracy at every time step, firing rates and spikes per image, in one pass over the images."""

import time
from typing import Annotated, Literal, cast

import torch
from pydantic import Field

from hybridsnn.artifacts import Artifact
from hybridsnn.checkpoint import SAVE_EVERY, load_checkpoint, save_checkpoint
from hybridsnn.config import Choice, StageConfig
from hybridsnn.conversion.integers import GRIDS
from hybridsnn.data import Batches
from hybridsnn.errors import ConfigError, OutOfTimeError
from hybridsnn.evaluation.accuracy import ann_accuracy, snn_accuracy
from hybridsnn.evaluation.early_exit import early_exit_accuracy, exit_margin, images_needed
from hybridsnn.evaluation.measurement import Measurement, Result, Rows, join
from hybridsnn.model import SpikingModel
from hybridsnn.stages.base import Stage, Work
from hybridsnn.stages.compute import PRECISION, Precision, fabric_for
from hybridsnn.stages.images import open_again
from hybridsnn.stages.integers import as_integers
from hybridsnn.stages.networks import load_network, write_metrics
from hybridsnn.stages.precision import settle


class EvaluateConfig(StageConfig):
    """Measures each network of the run, or those that `--from` names.

    One simulation gives the accuracy after every time step up to T. No other stage uses the test images.
    """

    split: Literal["test", "validation"] = Field("test", description="Split of the data set to evaluate on.")
    images: int | None = Field(
        None, gt=0, description="Number of images, stratified by class, the same for every network; unset: all."
    )
    timesteps: int | None = Field(None, gt=0, description="Number of time steps T; unset: that of the network.")
    batch_size: int = Field(100, gt=0, description="Batch size; does not change results.")
    precision: Precision = Field("32-true", description=PRECISION)
    exit_confidence: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Also measure early exit: each image stops at the first step whose answer agrees with the answer "
        "after T steps with this probability, calibrated on the validation images. Unset: no early exit.",
    )
    integer: bool = Field(
        False, description="Measure the spiking networks as networks of integers, simulated exactly, as exported."
    )
    weight_bits: int = Field(8, ge=2, le=16, description="Bits of the weights, with --integer.")
    grid: Annotated[str, Choice(GRIDS, "grid")] = Field(
        "channel", description="One integer threshold per layer or per channel, with --integer."
    )
    seed: int = Field(0, ge=0, description="Random seed of the encoder.")


def run(work: Work) -> None:
    """Evaluate and save; see `EvaluateConfig`."""
    config = cast(EvaluateConfig, work.config)
    fabric = fabric_for(work, config.precision)
    network, description = load_network(work.parents[0])
    if description.spiking is None and config.exit_confidence is not None:
        raise ConfigError(
            f"evaluate.exit_confidence: got {config.exit_confidence} for {work.parents[0].path}, an ANN, "
            "which has no time steps; leave it out, or name spiking networks with --from"
        )
    images = open_again(description, work).on(fabric.device)
    source = images.measuring(config.split, config.batch_size, config.images)
    if len(source) == 0:
        raise ConfigError(f"evaluate.split: '{config.split}' has no images; none were held out for validation")
    if config.integer and description.spiking is not None:
        spiking_steps = config.timesteps or description.spiking.timesteps
        network, _ = as_integers(
            cast(SpikingModel, network), description, spiking_steps, bits=config.weight_bits, grid=config.grid
        )
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
                known = images.measuring("validation", config.batch_size)
                early = _early_exit(spiking, source, known, work, fabric.device, timesteps)
            whole = snn_accuracy(spiking, fabric.device, timesteps=timesteps, seed=config.seed)
            rows = _pass(work, "evaluate", source, whole) + early
    write_metrics(work.folder, STAGE.name, config.split, rows)


def _early_exit(
    network: SpikingModel, source: Batches, known: Batches, work: Work, device: torch.device, timesteps: int
) -> Rows:
    """Rows of early exit, with the margin calibrated on the images `known`."""
    config = cast(EvaluateConfig, work.config)
    confidence = cast(float, config.exit_confidence)
    if len(known.positions) < (needed := images_needed(confidence)):
        raise ConfigError(
            f"evaluate.exit_confidence: got {confidence}, which takes {needed:,} validation images to promise, but "
            f"{len(known.positions):,} were held out; lower it, or hold out more (--validation of the first stage)"
        )
    run = {"timesteps": timesteps, "seed": config.seed}
    margin = _pass(work, "calibrate", known, exit_margin(network, device, confidence=confidence, **run))
    return _pass(work, "early exit", source, early_exit_accuracy(network, device, margin=margin, **run))


def _pass(work: Work, doing: str, source: Batches, measurement: Measurement[Result]) -> Result:
    """The result of one pass over the images; an interrupted pass resumes after the last batch of its checkpoint.

    Raises:
        OutOfTimeError: between two batches, once the time limit is reached.
    """
    environment, name, length = work.environment, work.parents[0].name, len(source)
    path = work.scratch / f"{doing.replace(' ', '-')}.safetensors"
    parts, done = [], 0
    if kept := load_checkpoint(path):
        values, measured = kept
        parts, done = [measured], values["batches"]
        if done < length:
            environment.progress.say(f"{doing} {name}: resuming after batch {done} of {length}")
    interrupt, saved = False, time.monotonic()
    for batch in environment.progress.track(source.epoch(0, done), f"{doing} {name}", length - done):
        parts.append(measurement.of_batch(batch))
        done += 1
        interrupt = done < length and environment.time_is_up()
        if interrupt or done == length or time.monotonic() - saved > SAVE_EVERY:
            parts = [join(parts)]
            save_checkpoint(path, {"batches": done}, parts[0])
            saved = time.monotonic()
        if interrupt:
            break  # out of the loop first, so that whatever shows progress ends before the error
    if interrupt:
        raise OutOfTimeError(
            f"interrupted in '{doing}' after batch {done} of {length}: time limit reached; "
            "the same command resumes there"
        )
    return measurement.result(join(parts))


def _folder(config: StageConfig, parents: tuple[Artifact, ...]) -> str:
    own, parent = cast(EvaluateConfig, config), parents[0]
    bits = f"-int{own.weight_bits}" if own.integer and parent.kind == "snn" else ""
    return f"evaluate-{parent.name}{bits}"


STAGE = Stage(
    name="evaluate",
    summary="Measure accuracy and spikes on the test images.",
    config=EvaluateConfig,
    consumes=("ann", "snn"),
    produces="evaluation",
    run=run,
    folder=_folder,
    each=True,
    example="hybridsnn evaluate",
)
