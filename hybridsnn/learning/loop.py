"""The one training loop, for every network and rule: epochs, schedule, validation, checkpoints."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from hybridsnn.batch import Batch
from hybridsnn.checkpoint import SAVE_EVERY
from hybridsnn.errors import ConfigError, OutOfTimeError
from hybridsnn.learning.averaging import MovingAverage
from hybridsnn.learning.optimisation import Optimisation, OwnRate
from hybridsnn.learning.rules.base import LearningRule
from hybridsnn.learning.training_state import (
    TrainingState,
    optimiser_tensors,
    random_states,
    restore_optimiser,
    restore_random_states,
)
from hybridsnn.memory import LiveMemory
from hybridsnn.model import Outputs, SpikingModel


class Source(Protocol):
    """Batches that are a function of the number of the epoch; `start` skips that many."""

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]: ...
    def __len__(self) -> int: ...


Encode = Callable[[Batch, int], Any]
Targets = Callable[[Batch, Tensor], Tensor]
Track = Callable[[Iterable[Any], str, int], Iterator[Any]]


def seed_of(*parts: int) -> int:
    """A seed that depends on all parts, such as (seed, epoch): different parts, unrelated seeds."""
    low, high = np.random.SeedSequence((len(parts), *parts)).generate_state(2)
    return int(low) | int(high) << 32


def at_precision(fabric: Fabric, model: SpikingModel) -> Any:
    """A model for rules, which call more than its `forward`: all of that at the precision of `fabric`.

    What it gives is float32 or wider. Fabric's own `mark_forward_method` does nothing on a single device.
    """
    wrapped: Any = fabric.setup_module(model)

    def call(method: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        with fabric.autocast():
            result = method(*arguments, **options)
        if isinstance(result, Outputs):
            wide = torch.promote_types(result.currents.dtype, torch.float32)
            return result._replace(currents=result.currents.to(wide))
        return result

    wrapped.run = partial(call, model.run)
    wrapped.value_bytes = partial(call, model.value_bytes)
    return wrapped


def fit(
    fabric: Fabric,
    model: nn.Module,
    rule: LearningRule,
    optimisation: Optimisation,
    batches: Source,
    *,
    encode: Encode,
    validate: Callable[[nn.Module], dict[str, float]] | None,
    folder: Path,
    seed: int,
    targets: Targets | None = None,
    own_rates: Sequence[OwnRate] = (),
    project: Callable[[], None] = lambda: None,
    track: Track = lambda items, description, total: iter(items),
    say: Callable[[str], None] = lambda text: None,
    time_is_up: Callable[[], bool] = lambda: False,
) -> list[dict[str, Any]]:
    """Train a model in place; it ends with the weights of the best validation accuracy, before training or after any
    epoch; the last of equals. Where a moving average is asked for, the weights measured and kept are the average.

    An interrupted or killed training resumes from the checkpoint in `folder`, which may lie within an epoch, and ends
    with the same weights and metrics. At least one batch is trained on before the next interruption.

    Args:
        rule: computes the gradients of a batch.
        encode: (batch, epoch) to the inputs of the rule, on the device.
        validate: returns `loss` and `accuracy` on the validation split; None keeps the last epoch.
        folder: for checkpoints.
        targets: of a batch and its labels on the device, what the rule learns; unset: the labels.
        own_rates: parameters with their own learning rates: thresholds and leaks.
        project: called after each update, to project thresholds and leaks into their bounds.
        track, say: progress.
        time_is_up: asked after each batch and each epoch: whether to save a checkpoint and raise `OutOfTimeError`.

    Returns:
        rows of metrics with `epoch`, `split`, `metric`, `value`; the last, `kept-epoch`, is the epoch whose weights
        were kept; `peak-live-bytes` of epoch 1 is the peak memory of the first training step.

    Raises:
        ConfigError: if the loss is not finite.
        ArtifactError: if the checkpoint is damaged.
        OutOfTimeError: if the time limit is reached before the end.
    """
    epochs, length = optimisation.epochs, len(batches)
    if epochs == 0:
        return []
    if length == 0:
        raise ConfigError("batch_size: larger than the training split; give a smaller one")
    fabric.to_device(model)  # first, since the state of the optimiser is restored to the device of the weights
    optimiser = optimisation.build(model, own_rates)
    kept = TrainingState.load(folder)
    state = kept or TrainingState()

    def place() -> str:
        if state.batch:
            return f"in epoch {state.epoch + 1} of {epochs}, after batch {state.batch} of {length}"
        return f"after epoch {state.epoch} of {epochs}"

    if kept is not None:
        say(f"resuming {place()}")
        model.load_state_dict(state.model)
        restore_optimiser(optimiser, state.optimiser)
    average = MovingAverage(model, optimisation.average_decay, state.average)
    wrapped = at_precision(fabric, model) if isinstance(model, SpikingModel) else fabric.setup_module(model)
    wrapped_optimiser: Any = fabric.setup_optimizers(optimiser)
    if state.precision:
        fabric.strategy.precision.load_state_dict(state.precision)

    def save() -> None:
        state.model, state.average = model.state_dict(), average.tensors
        state.optimiser = optimiser_tensors(optimiser)
        state.precision = fabric.strategy.precision.state_dict()
        if fabric.is_global_zero:
            state.save(folder)
        fabric.barrier()

    def interruption() -> OutOfTimeError:
        return OutOfTimeError(f"interrupted {place()}: time limit reached; the same command resumes there")

    def measure() -> dict[str, dict[str, float]]:
        if validate is None:
            return {}
        wrapped.eval()
        return {"validation": validate(wrapped)}

    memory = LiveMemory()

    def train(epoch: int) -> dict[str, float]:
        """Train on the remaining batches of an epoch; returns the means over all."""
        wrapped.train()
        torch.manual_seed(seed_of(seed, epoch))
        restore_random_states(state.random, fabric.device)
        zero = torch.zeros((), dtype=torch.float64)
        state.sums = sums = {
            name: state.sums.get(name, zero).to(fabric.device, copy=True) for name in ("loss", "correct", "images")
        }

        def set_rate(number: int) -> float:
            return optimisation.set_rate(optimiser, (epoch + number / length) / epochs)

        interrupt, saved = False, time.monotonic()
        for batch in track(batches.epoch(epoch, state.batch), f"epoch {epoch + 1}", length - state.batch):
            set_rate(state.batch)
            labels = fabric.to_device(batch.labels)
            wrapped_optimiser.zero_grad(set_to_none=True)
            inputs = encode(batch, epoch)
            very_first = epoch == state.batch == 0
            with memory if very_first else nullcontext():
                learned = labels if targets is None else targets(batch, labels)
                loss, logits = rule.step(wrapped, inputs, learned, fabric.backward)
            wrapped_optimiser.step()
            with torch.no_grad():
                project()
            average.update(epoch * length + state.batch + 1)
            sums["loss"] += loss * len(labels)
            sums["correct"] += (logits.argmax(1) == labels).sum()
            sums["images"] += len(labels)
            if very_first:
                state.peak_live_bytes = memory.peak
            state.batch += 1
            interrupt = time_is_up()
            if interrupt or time.monotonic() - saved > SAVE_EVERY:
                state.random = random_states(fabric.device)
                save()
                saved = time.monotonic()
            if interrupt:
                break  # out of the loop first, so that whatever shows progress ends before the error
        if interrupt:
            raise interruption()
        images = float(sums["images"])
        loss_mean = float(sums["loss"]) / images
        if not np.isfinite(loss_mean):
            raise ConfigError(
                f"learning_rate: the loss is {loss_mean} in epoch {epoch + 1}; "
                f"got {optimisation.learning_rate}, give a smaller one"
            )
        accuracy, last_rate = float(sums["correct"]) / images, set_rate(length - 1)
        measured = {"loss": loss_mean, "accuracy": accuracy, "learning-rate": last_rate}
        return measured | ({"peak-live-bytes": state.peak_live_bytes} if epoch == 0 else {})

    if kept is None:
        start = measure()
        if start:  # the initial weights are a candidate too, so that training never makes the network worse
            state.record(0, start, model)
            say(_line(0, epochs, start))
    for epoch in range(state.epoch, epochs):
        trained = train(epoch)
        with average.in_place():
            measured = {"train": trained, **measure()}
            state.record(epoch + 1, measured, model)
        save()
        say(_line(epoch + 1, epochs, measured))
        if epoch + 1 < epochs and time_is_up():
            raise interruption()

    model.load_state_dict(state.best)
    model.eval()
    say(f"keeps the weights of epoch {state.best_epoch}")
    judge = "train" if validate is None else "validation"
    kept_epoch = {"epoch": state.best_epoch, "split": judge, "metric": "kept-epoch", "value": state.best_epoch}
    return [*state.history, kept_epoch]


def _line(epoch: int, epochs: int, measured: dict[str, dict[str, float]]) -> str:
    parts = [
        f"{split} loss {values['loss']:.4f} accuracy {100 * values['accuracy']:.2f} %"
        for split, values in measured.items()
    ]
    return f"epoch {epoch}/{epochs}: " + ", ".join(parts)
