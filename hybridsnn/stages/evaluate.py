"""`evaluate`: accuracy at every time step, firing rates and spikes per image, in one pass over the images."""

import time
from typing import Annotated, Any, Literal, cast

import torch
from pydantic import Field

from hybridsnn.artifacts import Artifact
from hybridsnn.checkpoint import SAVE_EVERY, load_checkpoint, save_checkpoint
from hybridsnn.config import Choice, StageConfig
from hybridsnn.conversion.integers import GRIDS
from hybridsnn.data import Batches
from hybridsnn.errors import ConfigError, OutOfTimeError
from hybridsnn.evaluation.accuracy import ann_accuracy, snn_accuracy
from hybridsnn.evaluation.ceiling import ceiling, layer_synchronous_accuracy, obstacle
from hybridsnn.evaluation.early_exit import early_exit_accuracy, exit_margin, images_needed
from hybridsnn.evaluation.measurement import Measurement, Result, Rows, join, together
from hybridsnn.model import SpikingModel
from hybridsnn.stages.base import Stage, Work
from hybridsnn.stages.compute import PRECISION, Precision, fabric_for
from hybridsnn.stages.images import LoadedImages, open_again
from hybridsnn.stages.integers import as_integers
from hybridsnn.stages.networks import load_network, write_metrics
from hybridsnn.stages.precision import settle

MOST_WINDOWS = 64  # T; there are T (T + 1) / 2 windows


class EvaluateConfig(StageConfig):
    """Measures each network of the run, or those that `--from` names.

    One simulation gives the accuracy after every time step up to T, and the ceiling at T where the network has one.
    No other stage uses the test images.
    """

    split: Literal["test", "validation"] = Field("test", description="Split of the data set to evaluate on.")
    images: int | None = Field(
        None, gt=0, description="Number of images, stratified by class, the same for every network; unset: all."
    )
    timesteps: int | None = Field(None, gt=0, description="Number of time steps T; unset: that of the network.")
    operation: Literal["streaming", "layer-synchronous"] = Field(
        "streaming",
        description="Layers work at the same time, or each takes in all T steps before it fires for T steps, which "
        "takes T steps for each layer.",
    )
    ceiling: Literal["last", "every"] = Field(
        "last",
        description="Measure the ceiling, the accuracy if every layer spiked as often as its mean current says, at T "
        "only or at every time step.",
    )
    windows: bool = Field(
        False, description=f"Also measure every window of the readout, start to stop; for T of at most {MOST_WINDOWS}."
    )
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
    timesteps = None if description.spiking is None else config.timesteps or description.spiking.timesteps
    if timesteps is None:
        _refuse_of_anns(config, work.parents[0])
    else:
        _check_run(config, cast(SpikingModel, network), timesteps, work.parents[0])
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
    fabric = settle(work, fabric, config.precision, network, lambda: source.epoch(0), timesteps)
    with fabric.autocast():
        if timesteps is None:
            rows = _pass(work, "evaluate", source, ann_accuracy(network, fabric.device))
        else:
            rows = _spiking_rows(cast(SpikingModel, network), source, images, work, fabric.device, timesteps)
    write_metrics(work.folder, STAGE.name, config.split, rows)


def _asked(config: EvaluateConfig) -> dict[str, Any]:
    """The settings of spiking networks that are not the defaults."""
    names, fields = ("exit_confidence", "operation", "ceiling", "windows"), EvaluateConfig.model_fields
    return {name: value for name in names if (value := getattr(config, name)) != fields[name].default}


def _refuse_of_anns(config: EvaluateConfig, network: Artifact) -> None:
    """Refuse what takes time steps."""
    for name, value in _asked(config).items():
        raise ConfigError(
            f"evaluate.{name}: got {value} for {network.path}, an ANN, "
            "which has no time steps; leave it out, or name spiking networks with --from"
        )


def _check_run(config: EvaluateConfig, network: SpikingModel, timesteps: int, artifact: Artifact) -> None:
    """Refuse measurements that the network does not allow, or that exclude each other."""
    if timesteps < network.first_answer:
        raise ConfigError(
            f"evaluate.timesteps: got {timesteps}, must be at least {network.first_answer}, "
            f"the first step that {artifact.path} is read at"
        )
    if config.windows and timesteps > MOST_WINDOWS:
        raise ConfigError(f"evaluate.windows: got {timesteps} time steps, must be at most {MOST_WINDOWS}")
    if config.windows and network.readout_leak != 1:
        raise ConfigError(f"evaluate.windows: {artifact.path} has a readout that leaks; leave it out")
    reason = obstacle(network)
    if config.ceiling == "every" and reason:
        raise ConfigError(f"evaluate.ceiling: {artifact.path} has none, because {reason}; leave it out")
    if config.operation == "streaming":
        return
    if network.pre_steps and not reason:
        reason = f"it has {network.pre_steps} pre-steps"
    if reason:
        raise ConfigError(
            f"evaluate.operation: {artifact.path} cannot run layer-synchronously, because {reason}; use 'streaming'"
        )
    for name, value in _asked(config).items():
        if name != "operation":
            raise ConfigError(f"evaluate.{name}: got {value} with operation 'layer-synchronous'; leave one of them out")


def _spiking_rows(
    network: SpikingModel, source: Batches, images: LoadedImages, work: Work, device: torch.device, timesteps: int
) -> Rows:
    """All rows of one spiking network."""
    config = cast(EvaluateConfig, work.config)
    if config.operation == "layer-synchronous":
        return _pass(work, "evaluate", source, layer_synchronous_accuracy(network, device, timesteps=timesteps))
    early = []
    if config.exit_confidence is not None:
        known = images.measuring("validation", config.batch_size)
        early = _early_exit(network, source, known, work, device, timesteps)
    measured = [snn_accuracy(network, device, timesteps=timesteps, seed=config.seed, windows=config.windows)]
    if obstacle(network) is None:
        steps = [timesteps] if config.ceiling == "last" else range(network.first_answer, timesteps + 1)
        measured.append(ceiling(network, device, timesteps=steps))
    return _pass(work, "evaluate", source, together(measured)) + early


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
    operation = "" if own.operation == "streaming" else f"-{own.operation}"
    bits = f"-int{own.weight_bits}" if own.integer and parent.kind == "snn" else ""
    return f"evaluate-{parent.name}{operation}{bits}"


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
