"""`convert`: from a trained network to a balanced spiking one."""

from typing import Annotated, Any, Literal, cast

import torch
from pydantic import Field, ValidationInfo, field_validator

from hybridsnn.config import Choice, StageConfig
from hybridsnn.conversion import BALANCERS, GRANULARITIES, MAX_POOL_CHOICES, Calibration, balance, set_constants
from hybridsnn.data import DataSpec
from hybridsnn.encoders import ENCODERS
from hybridsnn.errors import ConfigError, DataError, OutOfTimeError
from hybridsnn.model import SpikingModel
from hybridsnn.stages.base import Stage, Work
from hybridsnn.stages.compute import fabric_for
from hybridsnn.stages.images import LoadedImages, open_again
from hybridsnn.stages.networks import (
    ModelDescription,
    SpikingDescription,
    encoder_for,
    load_network,
    save_network,
    write_metrics,
)

# Why settings that a balancer leaves no choice for are refused unless it measures nothing.
WHY_NOT = {
    "threshold": "which measures thresholds",
    "leak": "which assumes neurons that do not leak",
    "batch_norm": "since thresholds other than 1 rescale what batch norm would see",
}


class ConvertConfig(StageConfig):
    """Folds batch norm, puts a spiking neuron in the place of every ReLU, and balances the thresholds.

    Thresholds are measured on training images, never on test images. Weights are copied; where biases, branches or
    thresholds per channel ask for it, they are rescaled so that every spike is 0 or 1.

    To train from scratch, `--balance constant` measures nothing and changes no weight: thresholds and leaks are the
    numbers given, and batch norm can be kept in the synapses.
    """

    balance: Annotated[str, Choice(BALANCERS, "balancer")] = Field("max", description="How thresholds are found.")
    threshold: float | None = Field(None, gt=0, description="Every threshold, for --balance constant; unset: 1.")
    leak: float = Field(
        1.0,
        ge=0,
        le=1,
        description="What a membrane keeps from one step to the next; below 1 for --balance constant only.",
    )
    batch_norm: Literal["fold", "keep"] = Field(
        "fold", description="Fold batch norm into the synapses, or keep it in them, for --balance constant only."
    )
    readout_leak: float = Field(1.0, ge=0, le=1, description="What the readout keeps from one step to the next.")
    encoder: Annotated[str, Choice(ENCODERS, "encoder")] | None = Field(
        None, description="How images become frames; unset: event for event data, else direct."
    )
    timesteps: int | None = Field(
        None, gt=0, description="Time steps T; unset: the number of frames of event data, else 16."
    )
    threshold_scale: float = Field(
        1.0,
        gt=0,
        description="Factor on all thresholds after balancing; below 1 for few time steps (hybrid paper: 0.7).",
    )
    granularity: Annotated[str, Choice(GRANULARITIES, "granularity")] = Field(
        "layer", description="One threshold per layer, per channel, or per neuron."
    )
    initial_potential: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="Membrane before the first step, in thresholds; unset: 0.5 if direct and balanced, else 0.",
    )
    reset: Literal["soft", "hard"] = Field("soft", description="Subtract the threshold after a spike, or set to 0.")
    max_pool: Annotated[str, Choice(MAX_POOL_CHOICES, "max_pool")] = Field(
        "refuse", description="What to do with max pools."
    )
    percentile: float = Field(99.9, gt=0, le=100, description="For --balance percentile.")
    calibration_images: int = Field(256, gt=0, description="Training images on which thresholds are measured.")
    calibration_timesteps: int = Field(
        100, gt=0, description="Time steps that --balance max simulates; event data may have fewer."
    )
    seed: int = Field(0, ge=0, description="Seed of the choice of calibration images and of random spikes.")

    @field_validator(*WHY_NOT)
    @classmethod
    def _left_to_the_balancer(cls, value: Any, info: ValidationInfo) -> Any:
        balancer = info.data.get("balance")  # missing if it is itself refused
        default = cls.model_fields[str(info.field_name)].default
        if value == default or balancer is None or BALANCERS[balancer].thresholds is None:
            return value
        must = "must be left unset" if default is None else f"must be {default!r}"
        why = WHY_NOT[str(info.field_name)]
        raise ValueError(f"{must} with --balance {balancer}, {why}; give --balance constant to choose it")


def run(work: Work) -> None:
    """Convert and save; see `ConvertConfig`."""
    config = cast(ConvertConfig, work.config)
    fabric = fabric_for(work)
    network, description = load_network(work.parents[0])
    balancer = BALANCERS[config.balance]
    encoder, timesteps = coding(config, description.data)
    potential = config.initial_potential
    if potential is None:
        # Half a threshold centres the rounding of a constant input; one that changes needs no centring.
        potential = 0.5 if encoder == "direct" and balancer.thresholds is not None else 0.0
    spiking = SpikingDescription(
        encoder=encoder_for(encoder, description.preprocessing),
        timesteps=timesteps,
        granularity=config.granularity,
        reset=config.reset,
        initial_potential=potential,
        max_pool=config.max_pool,
        batch_norm=config.batch_norm,
        readout_leak=config.readout_leak,
    )
    model = spiking.build(network, description.network.input_shape).to(fabric.device)
    if balancer.thresholds is None:
        threshold = 1.0 if config.threshold is None else config.threshold
        set_constants(model.body, threshold * config.threshold_scale, config.leak)
    else:
        balance(model.body, balancer, calibration(config, model, description, work), config.threshold_scale)
    save_network(work.folder, description.model_copy(update={"spiking": spiking}), model)
    rows = [
        {"layer": name, "metric": "threshold", "value": float(neuron.threshold.mean())}
        for name, neuron in model.neurons.items()
    ]
    write_metrics(work.folder, STAGE.name, "train", rows)


def coding(config: ConvertConfig, data: DataSpec) -> tuple[str, int]:
    """The name of the encoder and the number of time steps: as asked for, else what fits the data.

    Raises:
        ConfigError: if the encoder does not encode such data, or recordings have fewer frames.
    """
    frames = data.event_frames
    encoder = config.encoder or ("direct" if frames is None else "event")
    if ENCODERS[encoder].events != (frames is not None):
        fitting = [name for name, entry in ENCODERS.items() if entry.events == (frames is not None)]
        raise ConfigError(
            f"convert.encoder: got '{encoder}', which does not encode {'images' if frames is None else 'events'}, "
            f"must be {' or '.join(fitting)} for '{data.dataset}'"
        )
    if frames is None:
        return encoder, config.timesteps or 16
    timesteps = config.timesteps or frames
    if timesteps > frames:
        raise ConfigError(
            f"convert.timesteps: got {timesteps}, must be at most {frames}, the frames of a recording; "
            f"or make the network with --event-frames {timesteps}"
        )
    return encoder, timesteps


def calibration(config: ConvertConfig, model: SpikingModel, description: ModelDescription, work: Work) -> Calibration:
    """What thresholds are measured on, for a model that is where it is to be measured."""
    images, indices = calibration_images(open_again(description, work), config.calibration_images, config.seed)
    timesteps = config.calibration_timesteps
    if description.data.event_frames is not None:
        timesteps = min(timesteps, description.data.event_frames)
    device = next(model.parameters()).device
    layers, done = len(model.neurons), 0

    def advance(name: str) -> None:
        nonlocal done
        done += 1
        work.environment.progress.say(f"balanced {name} ({done} of {layers})")
        if done < layers and work.environment.time_is_up():
            raise OutOfTimeError(
                f"interrupted at {done} of {layers} layers: time limit reached; the same command starts it over"
            )

    return Calibration(
        images.to(device),
        indices,
        model.encoder,
        timesteps=timesteps,
        seed=config.seed,
        percentile=config.percentile,
        advance=advance,
    )


def calibration_images(images: LoadedImages, count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised images `[N, C, H, W]` or events `[N, T, C, H, W]` and their indices `[N]`.

    They are drawn from the training split, without augmentation.

    Raises:
        DataError: if there are no training images.
    """
    source = images.measuring("train", 1)
    generator = torch.Generator().manual_seed(seed)
    chosen = source.positions[torch.randperm(len(source.positions), generator=generator)[:count]].sort().values
    if len(chosen) == 0:
        raise DataError(f"dataset: '{images.data.name}' has no training images to calibrate on")
    return source.preprocessing(source.images.batch(chosen)), chosen


STAGE = Stage(
    name="convert",
    summary="Turn a trained network into a spiking one.",
    config=ConvertConfig,
    consumes=("ann",),
    produces="snn",
    run=run,
    folder=lambda config, parents: f"convert-{cast(ConvertConfig, config).balance}",
    example="hybridsnn convert --balance max --timesteps 16",
)
