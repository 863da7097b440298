"""Anytime inference: each image leaves at the first step at which its answer is clear enough, and is simulated no more.

An answer is clear when its margin, the largest accumulated output less the second largest, is above a bound. The same
bound serves every step: the readout of a network of rates grows by what an image means, while what spikes round away
stays within a spike or so, so the same lead is as safe early as late.

The bound comes from images with known ends by split conformal prediction (Vovk et al., 2005; Angelopoulos and Bates,
2021). One number sums an image up: the largest bound with which it would leave with an answer that is not its last
(`misleading_margins`). A new image of the same kind is as likely as any to have the r-th largest of these numbers, so
with the floor((1 - P)(n + 1))-th largest of n images as the bound, it leaves with another answer than that of all T
steps with a probability of at most 1 - P, whatever the network and the data. No label is needed.
"""

import math
from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor

from hybridsnn.batch import Batch
from hybridsnn.errors import ConfigError
from hybridsnn.evaluation.measurement import Measurement, Rows
from hybridsnn.model import ModelState, SpikingModel

# Time steps simulated before images that have left are taken out of the batch; they may leave at each of them. A longer
# chunk simulates more steps of images that have left, a shorter one repeats more often what does not depend on its
# length, such as the synapses of a constant image. Four took the least time (LeNet-5 of 1 to 16, VGG5 of 2 to 8).
CHUNK = 4


class Answers(NamedTuple):
    """What images were answered, and when."""

    classes: Tensor  # int64 [B]
    steps: Tensor  # int64 [B], the step 1..T at which each image left
    spikes: Tensor  # float64 [B], of all neurons up to that step


def images_needed(confidence: float) -> int:
    """How many images with known ends it takes to promise a confidence at all, 0 < confidence < 1."""
    return math.ceil(1 / _risk(confidence)) - 1


def margins_of(outputs: Tensor) -> Tensor:
    """How far the largest output is ahead of the second, at least 0: outputs `[T, B, K]`, K > 1, to `[T, B]`."""
    first, second = outputs.topk(2).values.unbind(-1)
    return first - second


def misleading_margins(margins: Tensor, answers: Tensor) -> Tensor:
    """The smallest bound from which on each image leaves with the answer of its last step, or stays to the end.

    An image leaves where its margin is above the bound for the first time, so at one of the steps at which its margin
    is larger than ever before: the number sought is the largest margin of those at which the answer is another, or 0.

    Args:
        margins, answers: at each step, `[T, B]`.

    Returns:
        `[B]`.
    """
    before = torch.zeros_like(margins)
    before[1:] = margins[:-1].cummax(0).values
    return torch.where((margins > before) & (answers != answers[-1]), margins, 0).amax(0)


def margin_bound(misleading: Tensor, confidence: float) -> float:
    """The smallest bound for which these images can promise a confidence.

    A new image of the same kind leaves with an answer other than its last with a probability of at most 1 - confidence,
    over the draw of that image and of these.

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
    """The margin above which images may leave, from a full run over images that are not those to be measured.

    Args:
        confidence: the least probability with which an image is to leave with the answer of its last step, in (0, 1).
        timesteps: T, of a run to the end.
        seed: of random spikes.

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
    """Simulate each image until its margin is above the bound, or to the end; it has the outputs of a full run.

    Args:
        images: normalised, `[B, C, H, W]`; of events `[B, T, C, H, W]`; on the device of the model.
        indices: which image each one is, int64 `[B]`, for random spikes.
        margin: the bound, see `exit_margin`.
        timesteps: T, at which all that are left leave.
        seed: of random spikes.
    """
    model.eval()
    places = torch.arange(len(images), device=images.device)  # in the batch, of the images that are still there
    answers = Answers(torch.zeros_like(places), torch.zeros_like(places), torch.zeros_like(places, dtype=torch.float64))
    state: ModelState | None = None
    for start in range(0, timesteps, CHUNK):
        steps = torch.arange(min(CHUNK, timesteps - start), device=images.device).unsqueeze(1)
        spikes = torch.zeros(len(steps), len(places), dtype=torch.float64, device=images.device)

        def observe(name: str, values: Tensor, spikes: Tensor = spikes) -> None:
            spikes += values.flatten(2).sum(2, dtype=torch.float64)

        frames = model.encoder(images, indices, len(steps), start=start, seed=seed)
        outputs, state = model(frames, state, observe=observe)
        clear = margins_of(outputs) > margin
        if start + len(steps) == timesteps:
            clear[-1] = True
        leaving = clear.any(0)
        last = torch.where(leaving, clear.int().argmax(0), len(steps) - 1)  # each image's in this chunk
        answers.spikes[places] += torch.where(steps <= last, spikes, 0).sum(0)
        if not leaving.any():
            continue
        left, last = places[leaving], last[leaving]
        answers.steps[left] = start + last + 1
        answers.classes[left] = outputs.argmax(2)[last, leaving.nonzero().flatten()]
        if leaving.all():
            break
        staying = ~leaving
        images, indices, places = images[staying], indices[staying.to(indices.device)], places[staying]
        state = state.of(staying)
    return answers


def early_exit_accuracy(
    model: SpikingModel, device: torch.device, *, margin: float, timesteps: int, seed: int
) -> Measurement[Rows]:
    """What images that leave early are answered, and what it takes.

    Args:
        margin, timesteps, seed: see `answer_early`.

    Returns:
        rows `metric`, `value` and, where it applies, `step`: `exit-accuracy` of the answers with which images left,
        `exit-mean-steps` they took, `exit-spikes-per-image` until then, `exit-margin`, and of each step 1..T
        `exit-share`, the share of the images that had left after it.
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
        left = measured["steps"].bincount(minlength=timesteps + 1)  # at each step
        images = len(measured["steps"])
        return [
            {"metric": "exit-accuracy", "value": int(measured["correct"].sum()) / images},
            {"metric": "exit-mean-steps", "value": int(measured["steps"].sum()) / images},
            {"metric": "exit-spikes-per-image", "value": float(measured["spikes"].sum()) / images},
            {"metric": "exit-margin", "value": margin},
            *(
                {"step": step, "metric": "exit-share", "value": gone / images}
                for step, gone in enumerate(left.cumsum(0).tolist())
                if step
            ),
        ]

    return Measurement(of_batch, result)


def _risk(confidence: float) -> Fraction:
    """1 - confidence as it is written: 1 - 0.9 is a tenth, and not a little less."""
    return 1 - Fraction(str(confidence))
