"""`convert`: from a trained network to a balanced spiking one."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, Self, cast

from pydantic import Field, model_validator
from torch import fx, nn

from hybridsnn.batch import time_average
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
    prove_preparation,
    prove_scales,
)
from hybridsnn.conversion.balancers import Automatic
from hybridsnn.data import DataSpec
from hybridsnn.encoders import ENCODERS
from hybridsnn.errors import ConfigError, OutOfTimeError
from hybridsnn.evaluation.measurement import Rows
from hybridsnn.model import SpikingModel
from hybridsnn.options import OptionSettings
from hybridsnn.stages.automatic import BATCH, Way, best_way, ways
from hybridsnn.stages.base import Silent, Stage, Work
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

PROOF_IMAGES = 4  # that the result is tried on


class ConvertConfig(OptionSettings):
    """Folds batch norm, puts a spiking neuron in the place of every ReLU, and sets the thresholds.

    Thresholds are measured on training images, never on test images. Weights are copied; where biases, branches or
    thresholds per channel ask for it, they are rescaled so that every spike is 0 or 1.

    `--balance auto` tries every balancer that measures, with several corrections, at the T asked for, and takes the one
    that is most accurate on validation images; `hybridsnn show` says which.

    To train from scratch, `--balance constant` measures nothing and changes no weight: thresholds and leaks are the
    numbers given, and batch norm can be kept in the synapses.
    """

    chooser: ClassVar[str] = "balance"
    follows: ClassVar[Mapping[str, str]] = {"granularity": "balance"}
    list_choosers: ClassVar[tuple[str, ...]] = ("correct",)

    balance: Annotated[str, Choice(BALANCERS, "balancer")] = Field("max", description="How thresholds are found.")
    correct: tuple[Annotated[str, Choice(CORRECTIONS, "correction")], ...] = Field(
        (), description="Corrections of each layer once it has its threshold, in this order: a list such as [bias]."
    )
    readout_leak: float = Field(
        1.0, ge=0, le=1, description="What the readout keeps from one time step to the next; 1 sums all it gets."
    )
    readout_from: int = Field(
        1, ge=1, description="First time step whose output is read, from 1; T counts those before it too."
    )
    pre_steps: int = Field(
        0,
        ge=0,
        description="Time steps, the first of the T, that only find out which neurons should stay silent; then all "
        "membranes start again (SRP).",
    )
    encoder: Annotated[str, Choice(ENCODERS, "encoder")] | None = Field(
        None, description="How images become frames; unset: event for event data, else direct."
    )
    timesteps: int | None = Field(
        None, gt=0, description="Number of time steps T; unset: the number of frames of event data, else 16."
    )
    granularity: Annotated[str, Choice(GRANULARITIES, "granularity")] = Field(
        "layer",
        description="One threshold per layer, per channel, or per neuron; unset: channel with auto, else layer.",
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

    @classmethod
    def own_defaults(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """The granularity that the balancer has where none is set, and as many images as the corrections ask for."""
        entry = BALANCERS.get(str(values.get("balance")))
        found: dict[str, Any] = {"granularity": entry.granularity} if entry is not None else {}
        wanted = [CORRECTIONS[name].calibration_images for name in cls.choices.get("correct", ())]
        images = cls.model_fields.get("calibration_images")
        return found | ({"calibration_images": max(images.default, *wanted)} if images is not None and wanted else {})

    def balancer(self) -> Balancer:
        """The balancer with its options."""
        return cast(Balancer, self.chosen())

    def corrections(self) -> dict[str, Correction]:
        """The corrections by name, in order."""
        return dict(zip(self.correct, cast(list[Correction], self.all_chosen("correct")), strict=True))

    @model_validator(mode="after")
    def _something_to_correct(self) -> Self:
        if self.correct and not issubclass(BALANCERS[self.balance], (MeasuringBalancer, Automatic)):
            raise ValueError(f"correct: got {list(self.correct)}, but '{self.balance}' measures nothing; leave it out")
        return self


def run(work: Work) -> None:
    """Convert and save; see `ConvertConfig`."""
    config = cast(ConvertConfig, work.config)
    device = fabric_for(work).device
    network, description = load_network(work.parents[0])
    way = Way(config.balance, config.balancer(), config.corrections())
    rows: Rows = []
    encoder, timesteps = coding(config, description.data)
    _check_readout(config, encoder, timesteps)

    def convert(way: Way, work: Work) -> tuple[SpikingDescription, SpikingModel]:
        potential = config.initial_potential
        if potential is None:  # an input that changes in time needs no centring
            potential = way.balancer.initial_potential if encoder == "direct" else 0.0
        corrections = list(way.corrections.values())
        spiking = SpikingDescription(
            encoder=encoder_for(encoder, description.preprocessing),
            timesteps=timesteps,
            granularity=config.granularity,
            reset=config.reset,
            initial_potential=potential,
            max_pool=config.max_pool,
            batch_norm="fold" if way.balancer.folds_batch_norm else "keep",
            readout_leak=config.readout_leak,
            readout_from=config.readout_from,
            pre_steps=config.pre_steps,
            biases=any(correction.biases for correction in corrections),
            potentials=next((found for correction in corrections if (found := correction.potentials)), None),
            balance=way.balance,
            corrections=tuple(way.corrections),
        )
        model = spiking.build(network, description.network.input_shape).to(device)

        def draw(count: int) -> Calibration:
            shown = timesteps - config.pre_steps  # the steps in which neurons show what they stand for
            return replace(calibration(config, count, model, description, work), timesteps=shown)

        original = copy.deepcopy(model.body)
        if corrections:
            way.balancer.set_thresholds(model.body, draw, corrections)
        else:
            way.balancer.set_thresholds(model.body, draw)
        if way.balancer.rescales:
            prove(network, original, model, draw(PROOF_IMAGES), corrected=bool(corrections))
        return spiking, model

    if isinstance(way.balancer, Automatic):
        images = open_again(description, work).on(device)
        available = len(images.measuring("validation", BATCH).positions)
        validation = images.measuring("validation", BATCH, min(way.balancer.auto_images, available))
        quiet = replace(work, environment=replace(work.environment, progress=Silent()))
        way, rows = best_way(
            ways(way.balancer, way.corrections),
            lambda tried: convert(tried, quiet)[1],
            validation,
            work,
            timesteps=timesteps,
            seed=config.seed,
        )
    spiking, model = convert(way, work)
    save_network(work.folder, description.model_copy(update={"spiking": spiking}), model)
    rows += [
        {"layer": name, "metric": "threshold", "value": float(neuron.threshold.mean())}
        for name, neuron in model.neurons.items()
    ]
    write_metrics(work.folder, STAGE.name, "train", rows)


def prove(
    network: nn.Module,
    original: fx.GraphModule,
    model: SpikingModel,
    drawn: Calibration,
    *,
    corrected: bool,
) -> None:
    """See to it, on a few training images, that the spiking network is the ANN, layer by layer.

    Args:
        original: the body of the spiking network before thresholds were set.

    Raises:
        ConversionError: that names the first layer that differs.
    """
    encoder = model.encoder
    images = time_average(drawn.images) if ENCODERS[encoder.name].events else drawn.images
    prove_preparation(network.to(images.device), images)
    prove_scales(original, model.body, images, encoder.scale, corrected=corrected)


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


def _check_readout(config: ConvertConfig, encoder: str, timesteps: int) -> None:
    """Refuse pre-steps that mean nothing, and a readout that never begins."""
    if config.pre_steps and (encoder != "direct" or config.reset != "soft"):
        raise ConfigError(
            f"convert.pre_steps: got {config.pre_steps} with encoder '{encoder}' and reset '{config.reset}', "
            "must be 0 unless they are 'direct' and 'soft': only then a membrane tells of the activation"
        )
    if config.pre_steps >= timesteps:
        raise ConfigError(
            f"convert.pre_steps: got {config.pre_steps}, must be below the {timesteps} time steps, which include them"
        )
    if config.readout_from > timesteps:
        raise ConfigError(
            f"convert.readout_from: got {config.readout_from}, must be at most the {timesteps} time steps"
        )


def calibration(
    config: ConvertConfig, count: int, model: SpikingModel, description: ModelDescription, work: Work
) -> Calibration:
    """So many images to measure thresholds on, for a model that is where it is to be measured."""
    images, indices = open_again(description, work).calibration(count, config.seed)
    device = next(model.parameters()).device
    layers = len(model.neurons)
    done: list[str] = []

    def advance(name: str) -> None:
        if len(done) == layers:  # a balancer that measures first and is corrected in a second sweep
            done.clear()
        done.append(name)
        work.environment.progress.say(f"balanced {name} ({len(done)} of {layers})")
        if len(done) < layers and work.environment.time_is_up():
            raise OutOfTimeError(
                f"interrupted at {len(done)} of {layers} layers: time limit reached; the same command starts it over"
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
