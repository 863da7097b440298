"""The one training loop, for every network and rule: epochs, schedule, validation, checkpoints."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import nn

from hybridsnn.batch import Batch
from hybridsnn.errors import ConfigError
from hybridsnn.learning.bptt import LearningRule
from hybridsnn.learning.checkpoint import TrainingState, optimiser_tensors, restore_optimiser
from hybridsnn.learning.optimisation import Optimisation, OwnRate
from hybridsnn.memory import LiveMemory
from hybridsnn.model import SpikingModel


class Source(Protocol):
    """Batches that are a function of the epoch's number."""

    def epoch(self, number: int) -> Iterator[Batch]: ...
    def __len__(self) -> int: ...


Encode = Callable[[Batch, int], Any]
Track = Callable[[Iterable[Any], str, int], Iterator[Any]]


def seed_of(*parts: int) -> int:
    """A seed that depends on all parts, such as (seed, epoch): different parts, unrelated seeds."""
    low, high = np.random.SeedSequence((len(parts), *parts)).generate_state(2)
    return int(low) | int(high) << 32


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
    own_rates: Sequence[OwnRate] = (),
    project: Callable[[], None] = lambda: None,
    track: Track = lambda items, description, total: iter(items),
    say: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:
    """Train a model in place; it ends with the weights that were best on the validation split, at the start or after
    any epoch; of equals, the last.

    Everything random is a function of the seed and the epoch, so a training that is killed goes on from the last
    checkpoint in `folder` and ends with the same weights.

    Args:
        rule: fills the gradients of a batch.
        encode: (batch, epoch) to the inputs the rule expects, on the device.
        validate: gives `loss` and `accuracy` on the validation split; None keeps the last epoch.
        folder: for checkpoints.
        own_rates: of thresholds and leaks.
        project: called after each update, to bring thresholds and leaks back into their bounds.
        track, say: progress.

    Returns:
        rows of metrics with `epoch`, `split`, `metric`, `value`; the last, `kept-epoch`, says whose weights were kept,
        and `peak-live-bytes` of epoch 1 what forward and backward pass of the first batch needed.

    Raises:
        ConfigError: if the loss stops being a number.
        ArtifactError: if the checkpoint is damaged.
    """
    if optimisation.epochs == 0:
        return []
    if len(batches) == 0:
        raise ConfigError("batch_size: larger than the training split; give a smaller one")
    fabric.to_device(model)  # at once: what an optimiser remembers is restored to where the weights are
    optimiser = optimisation.build(model, own_rates)
    state = TrainingState.load(folder)
    if state is not None:
        say(f"resuming after epoch {state.epoch} of {optimisation.epochs}")
        model.load_state_dict(state.model)
        restore_optimiser(optimiser, state.optimiser)
    wrapped, wrapped_optimiser = fabric.setup(model, optimiser)
    if isinstance(model, SpikingModel):
        wrapped.mark_forward_method("currents")  # rules call it, and it must run at the precision asked for

    def measure() -> dict[str, dict[str, float]]:
        if validate is None:
            return {}
        wrapped.eval()
        return {"validation": validate(wrapped)}

    memory = LiveMemory()

    def train(epoch: int) -> dict[str, float]:
        wrapped.train()
        torch.manual_seed(seed_of(seed, epoch))
        loss_sum = torch.zeros((), dtype=torch.float64, device=fabric.device)
        correct, images, rate = torch.zeros_like(loss_sum), 0, 0.0
        for place, batch in enumerate(track(batches.epoch(epoch), f"epoch {epoch + 1}", len(batches))):
            rate = optimisation.set_rate(optimiser, (epoch + place / len(batches)) / optimisation.epochs)
            labels = fabric.to_device(batch.labels)
            wrapped_optimiser.zero_grad(set_to_none=True)
            inputs = encode(batch, epoch)
            with memory if epoch == place == 0 else nullcontext():
                loss, logits = rule.step(wrapped, inputs, labels, fabric.backward)
            wrapped_optimiser.step()
            with torch.no_grad():
                project()
            loss_sum += loss * len(labels)
            correct += (logits.argmax(1) == labels).sum()
            images += len(labels)
        loss_mean = float(loss_sum) / images
        if not np.isfinite(loss_mean):
            raise ConfigError(
                f"learning_rate: the loss is {loss_mean} in epoch {epoch + 1}; "
                f"got {optimisation.learning_rate}, give a smaller one"
            )
        measured = {"loss": loss_mean, "accuracy": float(correct) / images, "learning-rate": rate}
        return measured | ({"peak-live-bytes": memory.peak} if epoch == 0 else {})

    if state is None:
        state = TrainingState()
        start = measure()
        if start:  # the weights it starts with are a candidate too: training is never for the worse
            state.record(0, start, model)
            say(_line(0, optimisation.epochs, start))
    for epoch in range(state.epoch, optimisation.epochs):
        measured = {"train": train(epoch), **measure()}
        state.record(epoch + 1, measured, model)
        state.model, state.optimiser = model.state_dict(), optimiser_tensors(optimiser)
        if fabric.is_global_zero:
            state.save(folder)
        fabric.barrier()
        say(_line(epoch + 1, optimisation.epochs, measured))

    model.load_state_dict(state.best)
    model.eval()
    say(f"keeps the weights of epoch {state.best_epoch}")
    judge = "train" if validate is None else "validation"
    kept = {"epoch": state.best_epoch, "split": judge, "metric": "kept-epoch", "value": state.best_epoch}
    return [*state.history, kept]


def _line(epoch: int, epochs: int, measured: dict[str, dict[str, float]]) -> str:
    parts = [
        f"{split} loss {values['loss']:.4f} accuracy {100 * values['accuracy']:.2f} %"
        for split, values in measured.items()
    ]
    return f"epoch {epoch}/{epochs}: " + ", ".join(parts)
