"""`finetune`: train a spiking network further, through time."""

from collections.abc import Iterable
from typing import Annotated, Literal, Self, cast

from pydantic import Field, model_validator
from torch import nn

from hybridsnn.batch import Batch
from hybridsnn.config import Choice
from hybridsnn.data import AUGMENTATIONS
from hybridsnn.encoders import Frames
from hybridsnn.evaluation.accuracy import snn_accuracy
from hybridsnn.evaluation.measurement import evaluate
from hybridsnn.learning import OPTIMISERS, RULES, LearningRule, Options, OwnRate, seed_of
from hybridsnn.model import SpikingModel
from hybridsnn.neurons import SharedDropout
from hybridsnn.stages.base import Stage, Work
from hybridsnn.stages.compute import fabric_for
from hybridsnn.stages.images import open_again
from hybridsnn.stages.networks import load_network, save_network
from hybridsnn.stages.precision import settle
from hybridsnn.stages.training import SPIKES, TrainingSettings, train
from hybridsnn.surrogates import SURROGATES


class FinetuneConfig(TrainingSettings):
    """Starts from a converted or tuned network and keeps the weights, those it began with
    included, that are best on validation images.

    To train from scratch, convert a network made by `train-ann --epochs 0`. An interrupted training goes on where it
    was when the same command is given again, and ends with the same weights.
    """

    method: Annotated[str, Choice(RULES, "method")] = Field("stdb", description="Learning rule.")
    timesteps: int | None = Field(None, gt=0, description="Time steps T; unset: those of the network.")
    optimizer: Annotated[str, Choice(OPTIMISERS, "optimizer")] = Field("adam", description="Optimiser.")
    learning_rate: float = Field(1e-4, gt=0, description="At the start of the schedule.")
    surrogate: Annotated[str, Choice(SURROGATES, "surrogate")] | None = Field(
        None, description="Of the derivative of a spike; unset: the method's own."
    )
    loss: Literal["current", "readout"] = Field(
        "current",
        description="Of a step, for methods with a loss at every step: of what flows into the readout at that step, "
        "or of what the readout has accumulated, which suits converted networks.",
    )
    backward_steps: int | None = Field(
        None, gt=0, description="For sltt: steps, drawn anew for each batch, that have a backward pass; unset: all."
    )
    memory_budget: float | None = Field(
        None,
        gt=0,
        description="GiB for a training step besides weights, gradients and optimiser, for methods that keep all "
        "spikes; batch and time are cut into pieces that fit. Unset: time alone, 256 MiB for a chunk or 8 steps.",
    )
    learn_thresholds: bool | None = Field(
        None, description="Train thresholds too (kept above 0 by projection); unset: as the method says."
    )
    learn_leaks: bool | None = Field(
        None, description="Train leaks too (kept in [0, 1] by projection); unset: as the method says."
    )
    threshold_learning_rate: float | None = Field(None, gt=0, description="Of thresholds; unset: that of the weights.")
    leak_learning_rate: float | None = Field(None, gt=0, description="Of leaks; unset: that of the weights.")
    dropout: float | None = Field(None, ge=0, lt=1, description="Probability of dropout; unset: the network's own.")
    augmentation: Annotated[str, Choice(AUGMENTATIONS, "augmentation")] | None = Field(
        None, description="Random changes to training images; unset: as for the ANN."
    )
    seed: int = Field(0, ge=0, description="Seed of everything random.")

    @model_validator(mode="after")
    def _fits_method(self) -> Self:
        rule = RULES[self.method]
        if self.surrogate is not None and self.surrogate not in rule.surrogates:
            raise ValueError(
                f"'{self.method}' has no surrogate '{self.surrogate}'; allowed: {', '.join(rule.surrogates)}"
            )
        if self.backward_steps is not None and not rule.some_steps:
            able = ", ".join(name for name, entry in RULES.items() if entry.some_steps)
            raise ValueError(f"backward_steps is for {able}, not for '{self.method}'; leave it out")
        if self.memory_budget is not None and not rule.keeps_spikes:
            able = ", ".join(name for name, entry in RULES.items() if entry.keeps_spikes)
            raise ValueError(f"memory_budget is for {able}, not for '{self.method}'; leave it out")
        if self.loss != "current" and not rule.loss_per_step:
            raise ValueError(f"loss is for methods with a loss at every step, not for '{self.method}'; leave it out")
        for what, asked, says in (
            ("thresholds", self.learn_thresholds, rule.thresholds),
            ("leaks", self.learn_leaks, rule.leaks),
        ):
            if None not in (asked, says) and asked != says:
                raise ValueError(
                    f"'{self.method}' {'learns' if says else 'does not learn'} {what}; "
                    f"leave learn_{what} out, or choose another method"
                )
        return self

    def learns(self, what: Literal["thresholds", "leaks"]) -> bool:
        """Whether thresholds or leaks learn."""
        return bool(getattr(self, f"learn_{what}") or getattr(RULES[self.method], what))

    def rule(self) -> LearningRule:
        """The learning rule."""
        entry = RULES[self.method]
        surrogate = SURROGATES[self.surrogate or entry.surrogates[0]]
        budget = None if self.memory_budget is None else int(self.memory_budget * 2**30)
        return entry.build(
            Options(surrogate, self.backward_steps, readout_loss=self.loss == "readout", memory_budget=budget)
        )


def run(work: Work) -> None:
    """Fine-tune and save; see `FinetuneConfig`."""
    config = cast(FinetuneConfig, work.config)
    fabric = fabric_for(work, config.precision)
    loaded, description = load_network(work.parents[0])
    model = cast(SpikingModel, loaded)
    spiking = description.spiking
    assert spiking is not None  # the parent is an snn
    timesteps = config.timesteps or spiking.timesteps
    pictures = open_again(description.images, work).on(fabric.device)
    known = pictures.measuring("train", config.batch_size)
    fabric = settle(work, fabric, config.precision, model, lambda: known.epoch(0), timesteps)

    own_rates = [
        OwnRate(parameters, config.learning_rate if rate is None else rate)
        for learns, rate, parameters in (
            (
                config.learns("thresholds"),
                config.threshold_learning_rate,
                [neuron.threshold for neuron in model.neurons.values()],
            ),
            (config.learns("leaks"), config.leak_learning_rate, [neuron.leak for neuron in model.neurons.values()]),
        )
        if learns
    ]
    for group in own_rates:
        for parameter in group.parameters:
            parameter.requires_grad_(True)
    if config.dropout is not None:
        for module in model.modules():
            if isinstance(module, SharedDropout):
                module.probability = config.dropout

    def project() -> None:
        if own_rates:
            for neuron in model.neurons.values():
                neuron.project()

    def encode(batch: Batch, epoch: int) -> Frames:
        images = fabric.to_device(batch.images)
        return Frames(model.encoder, images, batch.indices, timesteps, seed=seed_of(config.seed, SPIKES, epoch))

    def measure(wrapped: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        seed = seed_of(config.seed, SPIKES)
        rows = evaluate(snn_accuracy(model, fabric.device, timesteps=timesteps, seed=seed), batches)
        return {row["metric"]: row["value"] for row in rows if row.get("step") == timesteps}

    train(
        STAGE.name,
        work,
        fabric,
        model,
        config.rule(),
        config,
        pictures,
        seed=config.seed,
        encode=encode,
        measure=measure,
        augmentation=config.augmentation,
        own_rates=own_rates,
        project=project,
    )
    tuned = description.model_copy(update={"spiking": spiking.model_copy(update={"timesteps": timesteps})})
    save_network(work.folder, tuned, model)


STAGE = Stage(
    name="finetune",
    summary="Train a spiking network further.",
    config=FinetuneConfig,
    consumes=("snn",),
    produces="snn",
    run=run,
    folder=lambda config, parents: f"finetune-{cast(FinetuneConfig, config).method}",
    example="hybridsnn finetune --method stdb --epochs 10",
)
