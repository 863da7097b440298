"""`convert`: from a trained network to a balanced spiking one."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, Self, cast

from pydantic import Field, model_validator

from hybridsnn.config import Choice
from hybridsnn.conversion import (
    BALANCERS,
    CORRECTIONS,
    GRANULARITIES,
    MAX_POOL_CHOICES,
    Balancer,
    Calibration,
    Correction,
    MeasuringBalancer,
)
from hybridsnn.data import DataSpec
from hybridsnn.encoders import ENCODERS
from hybridsnn.errors import ConfigError, OutOfTimeError
from hybridsnn.model import SpikingModel
from hybridsnn.options import OptionSettings
from hybridsnn.stages.base import Stage, Work
from hybridsnn.stages.compute import fabric_for
from hybridsnn.stages.images import open_again
from hybridsnn.stages.networks import (
    ModelDescription,
    SpikingDescription,
    encoder_for,
    load_network,
    save_network,
    write_metrics,
)


class ConvertConfig(OptionSettings):
    """Folds batch norm, puts a spiking neuron in the place of every ReLU, and sets the thresholds.

    Thresholds are measured on training images, never on test images. Weights are copied; where biases, branches or
    thresholds per channel ask for it, they are rescaled so that every spike is 0 or 1.

    To train from scratch, `--balance constant` measures nothing and changes no weight: thresholds and leaks are the
    numbers given, and batch norm can be kept in the synapses.
    """

    chooser: ClassVar[str] = "balance"
    list_choosers: ClassVar[tuple[str, ...]] = ("correct",)

    balance: Annotated[str, Choice(BALANCERS, "balancer")] = Field("max", description="How thresholds are found.")
    correct: tuple[Annotated[str, Choice(CORRECTIONS, "correction")], ...] = Field(
        (), description="Corrections of each layer once it has its threshold, in this order: a list such as [bias]."
    )
    readout_leak: float = Field(
        1.0, ge=0, le=1, description="What the readout keeps from one time step to the next; 1 sums all it gets."
    )
    encoder: Annotated[str, Choice(ENCODERS, "encoder")] | None = Field(
        None, description="How images become frames; unset: event for event data, else direct."
    )
    timesteps: int | None = Field(
        None, gt=0, description="Number of time steps T; unset: the number of frames of event data, else 16."
    )
    granularity: Annotated[str, Choice(GRANULARITIES, "granularity")] = Field(
        "layer", description="One threshold per layer, per channel, or per neuron."
    )
    initial_potential: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="Initial membrane potential, as a fraction of the threshold; unset: 0.5 with direct coding and "
        "measured thresholds, else 0.",
    )
    reset: Literal["soft", "hard"] = Field("soft", description="Subtract the threshold after a spike, or set to 0.")
    max_pool: Annotated[str, Choice(MAX_POOL_CHOICES, "max_pool")] = Field(
        "refuse", description="What to do with max pools."
    )
    seed: int = Field(0, ge=0, description="Seed of the choice of calibration images and of random spikes.")

    def balancer(self) -> Balancer:
        """The balancer with its options."""
        return cast(Balancer, self.chosen())

    def corrections(self) -> list[Correction]:
        """The corrections, in order."""
        return cast(list[Correction], self.all_chosen("correct"))

    @classmethod
    def own_defaults(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """As many calibration images as the corrections ask for."""
        wanted = [CORRECTIONS[name].calibration_images for name in cls.choices.get("correct", ())]
        images = cls.model_fields.get("calibration_images")
        return {"calibration_images": max(images.default, *wanted)} if images is not None and wanted else {}

    @model_validator(mode="after")
    def _something_to_correct(self) -> Self:
        if self.correct and not issubclass(BALANCERS[self.balance], MeasuringBalancer):
            raise ValueError(f"correct: got {list(self.correct)}, but '{self.balance}' measures nothing; leave it out")
        return self


def run(work: Work) -> None:
    """Convert and save; see `ConvertConfig`."""
    config = cast(ConvertConfig, work.config)
    fabric = fabric_for(work)
    network, description = load_network(work.parents[0])
    balancer, corrections = config.balancer(), config.corrections()
    encoder, timesteps = coding(config, description.data)
    potential = config.initial_potential
    if potential is None:  # an input that changes in time needs no centring
        potential = balancer.initial_potential if encoder == "direct" else 0.0
    spiking = SpikingDescription(
        encoder=encoder_for(encoder, description.preprocessing),
        timesteps=timesteps,
        granularity=config.granularity,
        reset=config.reset,
        initial_potential=potential,
        max_pool=config.max_pool,
        batch_norm="fold" if balancer.folds_batch_norm else "keep",
        readout_leak=config.readout_leak,
        biases=any(correction.biases for correction in corrections),
        potentials=next((found for correction in corrections if (found := correction.potentials)), None),
    )
    model = spiking.build(network, description.network.input_shape).to(fabric.device)

    def draw(count: int) -> Calibration:
        return replace(calibration(config, count, model, description, work), timesteps=timesteps)

    if corrections:
        balancer.set_thresholds(model.body, draw, corrections)
    else:
        balancer.set_thresholds(model.body, draw)
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


def calibration(
    config: ConvertConfig, count: int, model: SpikingModel, description: ModelDescription, work: Work
) -> Calibration:
    """So many images to measure thresholds on, for a model that is where it is to be measured."""
    images, indices = open_again(description, work).calibration(count, config.seed)
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

    return Calibration(images.to(device), indices, model.encoder, seed=config.seed, advance=advance)


STAGE = Stage(
    name="convert",
    summary="Turn a trained network into a spiking one.",
    config=ConvertConfig,
    consumes=("ann",),
    produces="snn",
    run=run,
    folder=lambda config, parents: "-".join(["convert", (own := cast(ConvertConfig, config)).balance, *own.correct]),
    example="hybridsnn convert --balance max --timesteps 16",
)
