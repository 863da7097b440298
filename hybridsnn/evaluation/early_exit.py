"""Early exit (anytime inference): each image exits at the first time step whose answer is certain enough.

The criterion is the margin: the largest accumulated output less the second largest. An image exits when its margin is
above a bound, the same at every step: with rate coding the readout grows in proportion to time, while the error of
rounding to spikes stays within about one spike, so the same margin is as safe early as late.

The bound is calibrated on images that are run for all T steps, by split conformal prediction (Vovk et al., 2005;
Angelopoulos and Bates, 2021). The score of an image is the largest bound with which it would exit with an answer other
than its last (`misleading_margins`). A new image of the same distribution is as likely as any to have the r-th largest
score, so with the floor((1 - P)(n + 1))-th largest score of n images as the bound, its answer at exit differs from that
after T steps with a probability of at most 1 - P, for any network and any data. No label is needed.
"""

import math
from collections import Counter
from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor

from hybridsnn.batch import Batch
from hybridsnn.errors import ConfigError
from hybridsnn.evaluation.measurement import Measurement, Rows
from hybridsnn.model import ModelState, SpikingModel

# Steps in a chunk. Images may exit at each step, and are taken out of the batch at the end of a chunk. A longer one
# simulates more steps of images that have exited; a shorter one repeats more often what does not depend on its length,
# such as the synapses of a constant image. Four took the least time (LeNet-5: tried 1 to 16; VGG5: 2 to 8).
CHUNK = 4


class Answers(NamedTuple):
    """The class that each image exited with, and when."""

    classes: Tensor  # int64 [B]
    steps: Tensor  # int64 [B], the step 1..T at which each image exited
    spikes: Tensor  # float64 [B], of all neurons up to that step


def images_needed(confidence: float) -> int:
    """The least number of calibration images for a confidence in (0, 1)."""
    return math.ceil(1 / _risk(confidence)) - 1


def margins_of(outputs: Tensor) -> Tensor:
    """The largest output less the second largest: outputs `[T, B, K]`, K > 1, to `[T, B]`, at least 0."""
    first, second = outputs.topk(2).values.unbind(-1)
    return first - second


def misleading_margins(margins: Tensor, answers: Tensor) -> Tensor:
    """The smallest bound from which on each image exits with the answer of its last step.

    An image exits where its margin is above the bound for the first time, so at one of the steps at which its margin
    is larger than at all earlier ones: the result is the largest margin of those whose answer is not the last, or 0.

    Args:
        margins, answers: at each step, `[T, B]`.

    Returns:
        `[B]`.
    """
    before = torch.zeros_like(margins)
    before[1:] = margins[:-1].cummax(0).values
    return torch.where((margins > before) & (answers != answers[-1]), margins, 0).amax(0)


def margin_bound(misleading: Tensor, confidence: float) -> float:
    """The smallest bound that split conformal prediction allows for a confidence.

    The answer of a new image of the same distribution at exit differs from its last with a probability of at most
    1 - confidence, over the draw of that image and of these.

    Args:
        misleading: the `misleading_margins` of n images.
        confidence: above 0, below 1.

    Raises:
        ConfigError: if there are fewer than `images_needed`.
    """
    images = len(misleading)
    rank = math.floor(_risk(confidence) * (images + 1))
    if rank < 1:
        raise ConfigError(
            f"confidence: got {confidence}, which takes {images_needed(confidence):,} images to promise, "
            f"but there are {images:,}"
        )
    return float(misleading.sort(descending=True).values[rank - 1])


def exit_margin(
    model: SpikingModel, device: torch.device, *, confidence: float, timesteps: int, seed: int
) -> Measurement[float]:
    """The bound on the margin, from a run of all T steps over images that are not those to be evaluated.

    Args:
        confidence: the least probability that an image exits with the answer of its last step, in (0, 1).
        timesteps: T.
        seed: of the encoder.

    Raises:
        ConfigError: of the result, if there are fewer images than `images_needed`.
    """

    @torch.no_grad()
    def of_batch(batch: Batch) -> dict[str, Tensor]:
        model.eval()
        images = batch.images.to(device)
        state: ModelState | None = None
        margins, answers = [], []
        for start in range(0, timesteps, CHUNK):
            frames = model.encoder(images, batch.indices, min(CHUNK, timesteps - start), start=start, seed=seed)
            outputs, state = model(frames, state)
            margins.append(margins_of(outputs))
            answers.append(outputs.argmax(2))
        return {"misleading": misleading_margins(torch.cat(margins), torch.cat(answers)).cpu()}

    return Measurement(of_batch, lambda measured: margin_bound(measured["misleading"], confidence))


@torch.no_grad()
def answer_early(
    model: SpikingModel, images: Tensor, indices: Tensor, *, margin: float, timesteps: int, seed: int = 0
) -> Answers:
    """Simulate each image until its margin is above the bound, or for T steps; its outputs are those of a full run.

    Args:
        images: normalised, `[B, C, H, W]`; of events `[B, T, C, H, W]`; on the device of the model.
        indices: which image each one is, int64 `[B]`, for random spikes.
        margin: the bound, see `exit_margin`.
        timesteps: T, at which all remaining images exit.
        seed: of the encoder.
    """
    model.eval()
    places = torch.arange(len(images), device=images.device)  # in the batch, of the images that are still simulated
    answers = Answers(torch.zeros_like(places), torch.zeros_like(places), torch.zeros_like(places, dtype=torch.float64))
    state: ModelState | None = None
    for start in range(0, timesteps, CHUNK):
        steps = torch.arange(min(CHUNK, timesteps - start), device=images.device).unsqueeze(1)
        spikes = torch.zeros(len(steps), len(places), dtype=torch.float64, device=images.device)
        seen: Counter[str] = Counter()  # steps of each layer: pre-steps that end in this chunk come apart from the rest

        def observe(name: str, values: Tensor, spikes: Tensor = spikes, seen: Counter[str] = seen) -> None:
            spikes[seen[name] : seen[name] + len(values)] += values.flatten(2).sum(2, dtype=torch.float64)
            seen[name] += len(values)

        frames = model.encoder(images, indices, len(steps), start=start, seed=seed)
        outputs, state = model(frames, state, observe=observe)
        certain = margins_of(outputs) > margin
        if start + len(steps) == timesteps:
            certain[-1] = True
        exiting = certain.any(0)
        last = torch.where(exiting, certain.int().argmax(0), len(steps) - 1)  # each image's in this chunk
        answers.spikes[places] += torch.where(steps <= last, spikes, 0).sum(0)
        if not exiting.any():
            continue
        exits, last = places[exiting], last[exiting]
        answers.steps[exits] = start + last + 1
        answers.classes[exits] = outputs.argmax(2)[last, exiting.nonzero().flatten()]
        if exiting.all():
            break
        staying = ~exiting
        images, indices, places = images[staying], indices[staying.to(indices.device)], places[staying]
        state = state.of(staying)
    return answers


def early_exit_accuracy(
    model: SpikingModel, device: torch.device, *, margin: float, timesteps: int, seed: int
) -> Measurement[Rows]:
    """Accuracy and cost with early exit.

    Args:
        margin, timesteps, seed: see `answer_early`.

    Returns:
        rows `metric`, `value` and, where it applies, `step`: `exit-accuracy`, `exit-mean-steps`,
        `exit-spikes-per-image` up to the exit, `exit-margin` (the bound), and for each step 1..T `exit-share`, the
        share of the images that had exited after it.
    """

    def of_batch(batch: Batch) -> dict[str, Tensor]:
        images = batch.images.to(device)
        answers = answer_early(model, images, batch.indices, margin=margin, timesteps=timesteps, seed=seed)
        return {
            "correct": answers.classes.cpu() == batch.labels,
            "steps": answers.steps.cpu(),
            "spikes": answers.spikes.cpu(),
        }

    def result(measured: dict[str, Tensor]) -> Rows:
        exited = measured["steps"].bincount(minlength=timesteps + 1)  # at each step
        images = len(measured["steps"])
        return [
            {"metric": "exit-accuracy", "value": int(measured["correct"].sum()) / images},
            {"metric": "exit-mean-steps", "value": int(measured["steps"].sum()) / images},
            {"metric": "exit-spikes-per-image", "value": float(measured["spikes"].sum()) / images},
            {"metric": "exit-margin", "value": margin},
            *(
                {"step": step, "metric": "exit-share", "value": gone / images}
                for step, gone in enumerate(exited.cumsum(0).tolist())
                if step
            ),
        ]

    return Measurement(of_batch, result)


def _risk(confidence: float) -> Fraction:
    """1 - confidence as it is written: 1 - 0.9 is a tenth, and not a little less."""
    return 1 - Fraction(str(confidence))
