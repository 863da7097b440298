"""`convert`: from a trained network to a balanced spiking one."""

from typing import Annotated, Literal, cast

import torch
from pydantic import Field

from hybridsnn.config import Choice, StageConfig
from hybridsnn.conversion import BALANCERS, GRANULARITIES, MAX_POOL_CHOICES, Calibration, balance, spiking_body
from hybridsnn.encoders import ENCODERS
from hybridsnn.errors import DataError
from hybridsnn.model import SpikingModel
from hybridsnn.stages.base import Stage, Work
from hybridsnn.stages.compute import fabric_for
from hybridsnn.stages.images import Pictures, open_again
from hybridsnn.stages.networks import SpikingDescription, encoder_for, load_network, save_network, write_metrics


class ConvertConfig(StageConfig):
    """Folds batch norm, puts a spiking neuron in the place of every ReLU, and balances the thresholds.

    Thresholds are measured on training images, never on test images. Weights are copied; where biases, branches or
    thresholds per channel ask for it, they are rescaled so that every spike is 0 or 1.
    """

    balance: Annotated[str, Choice(BALANCERS, "balancer")] = Field("max", description="How thresholds are found.")
    encoder: Annotated[str, Choice(ENCODERS, "encoder")] = Field("direct", description="How images become frames.")
    timesteps: int = Field(16, gt=0, description="Time steps T of the spiking network.")
    threshold_scale: float = Field(
        1.0,
        gt=0,
        description="Factor on all thresholds after balancing; below 1 for few time steps (hybrid paper: 0.7).",
    )
    granularity: Annotated[str, Choice(GRANULARITIES, "granularity")] = Field(
        "layer", description="One threshold per layer, or per channel."
    )
    initial_potential: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="Membrane before the first step, in thresholds; unset: 0.5 if direct, else 0.",
    )
    reset: Literal["soft", "hard"] = Field("soft", description="Subtract the threshold after a spike, or set to 0.")
    max_pool: Annotated[str, Choice(MAX_POOL_CHOICES, "max_pool")] = Field(
        "refuse", description="What to do with max pools."
    )
    percentile: float = Field(99.9, gt=0, le=100, description="For --balance percentile.")
    calibration_images: int = Field(256, gt=0, description="Training images on which thresholds are measured.")
    calibration_timesteps: int = Field(100, gt=0, description="Time steps that --balance max simulates.")
    seed: int = Field(0, ge=0, description="Seed of the choice of calibration images and of random spikes.")


def run(work: Work) -> None:
    """Convert and save; see `ConvertConfig`."""
    config = cast(ConvertConfig, work.config)
    fabric = fabric_for(work)
    network, description = load_network(work.parents[0])
    pictures = open_again(description.images, work)
    potential = config.initial_potential
    if potential is None:
        # Half a threshold centres the rounding of a constant input; a random one needs no centring.
        potential = 0.0 if ENCODERS[config.encoder].random else 0.5
    body = spiking_body(
        network,
        description.network.input_shape,
        granularity=config.granularity,
        reset=config.reset,
        initial_potential=potential,
        max_pool=config.max_pool,
    )
    encoder = encoder_for(config.encoder, description.images.preprocessing())
    model = SpikingModel(body, encoder).to(fabric.device)
    layers = len(model.neurons)
    images, indices = calibration_images(pictures, config.calibration_images, config.seed)
    done: list[str] = []
    progress = work.environment.progress

    def advance(name: str) -> None:
        done.append(name)
        progress.say(f"balanced {name} ({len(done)} of {layers})")

    balance(
        body,
        BALANCERS[config.balance],
        Calibration(
            images.to(fabric.device),
            indices,
            encoder,
            timesteps=config.calibration_timesteps,
            seed=config.seed,
            percentile=config.percentile,
            advance=advance,
        ),
        config.threshold_scale,
    )
    spiking = SpikingDescription(
        encoder=encoder,
        timesteps=config.timesteps,
        granularity=config.granularity,
        reset=config.reset,
        initial_potential=potential,
        max_pool=config.max_pool,
    )
    save_network(work.folder, description.model_copy(update={"spiking": spiking}), model)
    rows = [
        {"layer": name, "metric": "threshold", "value": float(neuron.threshold.mean())}
        for name, neuron in model.neurons.items()
    ]
    write_metrics(work.folder, STAGE.name, "train", rows)


def calibration_images(pictures: Pictures, count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised images `[N, C, H, W]` and their indices `[N]`, drawn from the training split without augmentation.

    Raises:
        DataError: if there are no training images.
    """
    source = pictures.measuring("train", 1)
    generator = torch.Generator().manual_seed(seed)
    chosen = source.positions[torch.randperm(len(source.positions), generator=generator)[:count]].sort().values
    if len(chosen) == 0:
        raise DataError(f"dataset: '{pictures.data.name}' has no training images to calibrate on")
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
