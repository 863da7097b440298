"""Anytime inference: a bound that keeps its promise, and images that leave with what a full run would tell then."""

import math

import pytest
import torch
from test_model import batches_of, frames_of
from torch import Tensor
from toy_networks import CLASSES, Residual, encodable, exact, seeded, spiking

from hybridsnn.batch import Batch
from hybridsnn.encoders import ENCODERS
from hybridsnn.errors import ConfigError
from hybridsnn.evaluation.early_exit import (
    answer_early,
    early_exit_accuracy,
    exit_margin,
    images_needed,
    margin_bound,
    margins_of,
    misleading_margins,
)
from hybridsnn.evaluation.measurement import evaluate
from hybridsnn.model import SpikingModel

CPU = torch.device("cpu")
STEPS, IMAGES = 11, 24
LABELS = torch.arange(IMAGES) % CLASSES


def random_runs(images: int, seed: int = 0, timesteps: int = 6) -> tuple[Tensor, Tensor]:
    """Margins and answers `[T, B]` of readouts that drift, in whole numbers, so that ties are many."""
    random = torch.Generator().manual_seed(seed)
    drift = torch.randint(0, 2, (1, images, 3), generator=random)
    outputs = (drift + torch.randint(-2, 3, (timesteps, images, 3), generator=random)).cumsum(0).float()
    return margins_of(outputs), outputs.argmax(2)


def leave(margins: Tensor, answers: Tensor, bound: float) -> tuple[list[int], list[int]]:
    """Steps 1..T and answers, one image after the other."""
    steps = []
    for image in range(margins.shape[1]):
        clear = [step for step, margin in enumerate(margins[:-1, image].tolist()) if margin > bound]
        steps.append(clear[0] if clear else len(margins) - 1)
    return [step + 1 for step in steps], [int(answers[step, image]) for image, step in enumerate(steps)]


def misled(margins: Tensor, answers: Tensor, bound: float) -> list[bool]:
    return [
        answer != last for answer, last in zip(leave(margins, answers, bound)[1], answers[-1].tolist(), strict=True)
    ]


def network(encoder: str = "poisson", kernel: str = "reference") -> SpikingModel:
    """In float64, all of whose sums are exact: what an image gives cannot depend on its batch."""
    model = spiking(exact(seeded(Residual())), encoder).double()
    for neuron in model.neurons.values():
        neuron.kernel = kernel
    return model


def full_run(model: SpikingModel, images: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs `[T, B, K]` and the spikes of all neurons at each step, `[T, B]`."""
    spikes = torch.zeros(STEPS, len(images), dtype=torch.float64)
    with torch.no_grad():
        outputs, _ = model(
            frames_of(model, images, STEPS), observe=lambda name, values: spikes.add_(values.flatten(2).sum(2))
        )
    return outputs, spikes


def test_the_margin_is_the_lead_over_the_second() -> None:
    outputs = torch.tensor([[[3.0, -1.0, 1.0], [2.0, 2.0, 0.0]], [[-5.0, -2.0, -2.5], [0.0, 0.0, 0.0]]])
    assert margins_of(outputs).tolist() == [[2.0, 0.0], [0.5, 0.0]]


def test_misleading_margins_are_known() -> None:
    answers = torch.tensor([[0, 1, 0, 1, 1], [1, 1, 0, 1, 0], [1, 0, 0, 0, 1], [1, 0, 0, 0, 0]])
    margins = torch.tensor([[3.0, 1, 9, 0, 4], [1, 2, 1, 0, 5], [2, 7, 1, 1, 3], [9, 9, 9, 9, 9]])
    # At step 1; at the later of two; never; not at a tie; at step 1, since the margin of step 3 comes after a larger.
    assert misleading_margins(margins, answers).tolist() == [3.0, 2.0, 0.0, 0.0, 4.0]
    assert misleading_margins(margins[:1], answers[:1]).tolist() == [0.0] * 5  # the first step may be the last


@pytest.mark.parametrize("seed", range(3))
def test_a_misleading_margin_is_the_end_of_the_bounds_that_mislead(seed: int) -> None:
    """No bound from there on does, and one just below does; which others do, no one asks."""
    margins, answers = random_runs(60, seed)
    largest = misleading_margins(margins, answers)
    assert 5 < (largest > 0).sum() < 55
    for image, end in enumerate(largest.tolist()):
        one = margins[:, image : image + 1], answers[:, image : image + 1]
        bounds = sorted({end, *(margin for margin in one[0].flatten().tolist() if margin > end)})
        assert not any(misled(*one, bound)[0] for bound in bounds)
        assert end == 0 or misled(*one, end - 0.5)[0]


@pytest.mark.parametrize("confidence", [0.5, 0.8, 0.9, 0.97])
def test_the_promise_is_kept(confidence: float) -> None:
    """Of images of which each is held against the bound of all others, no larger share is misled: split conformal."""
    margins, answers = random_runs(40)
    largest = misleading_margins(margins, answers)
    wrong = 0
    for image in range(40):
        others = torch.arange(40) != image
        bound = margin_bound(largest[others], confidence)
        wrong += misled(margins[:, ~others], answers[:, ~others], bound)[0]
    assert wrong <= (1 - confidence) * 40 + 1e-9
    assert wrong > 0 or confidence > 0.9  # and the bound is not larger than it must be


def test_more_confidence_takes_more_steps() -> None:
    margins, answers = random_runs(200)
    largest = misleading_margins(margins, answers)
    bounds = [margin_bound(largest, confidence) for confidence in (0.01, 0.6, 0.9, 0.99)]
    steps = [sum(leave(margins, answers, bound)[0]) for bound in bounds]
    assert bounds == sorted(bounds) and steps == sorted(steps) and len(set(steps)) > 2
    assert bounds[0] == 0  # ties never leave


@pytest.mark.parametrize(
    ("confidence", "images"), [(0.9, 9), (0.99, 99), (0.998, 499), (0.95, 19), (0.5, 1), (0.01, 1)]
)
def test_images_needed(confidence: float, images: int) -> None:
    """1 - 0.9 is 0.1, whatever floats make of it."""
    assert images_needed(confidence) == images
    largest = torch.rand(images, generator=torch.Generator().manual_seed(0))
    if confidence >= 0.5:  # with so few no image may be misled, so the bound is the largest of all
        assert margin_bound(largest, confidence) == largest.max()
    with pytest.raises(ConfigError, match=f"takes {images} images to promise, but there are {images - 1}"):
        margin_bound(largest[1:], confidence)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_images_leave_with_what_a_full_run_tells_at_their_step(encoder: str) -> None:
    """Bit for bit: at the bound that one image reaches exactly at some step, it stays; just below, it leaves."""
    model = network(encoder)
    images = encodable(encoder, IMAGES, STEPS).double()
    outputs, spikes = full_run(model, images)
    margins, answers = margins_of(outputs), outputs.argmax(2)
    assert outputs.dtype == torch.float64
    reached = sorted(margins.flatten().tolist())
    seen: set[int] = set()
    for bound in (0.0, *reached[:: len(reached) // 12], math.inf):
        for margin in (bound, math.nextafter(bound, -math.inf)):
            if margin < 0:
                continue
            got = answer_early(model, images, torch.arange(IMAGES), margin=margin, timesteps=STEPS, seed=3)
            steps, classes = leave(margins, answers, margin)
            assert got.steps.tolist() == steps
            assert got.classes.tolist() == classes
            assert got.spikes.tolist() == [spikes[:step, image].sum() for image, step in enumerate(steps)]
            seen.update(steps)
    assert seen == set(range(1, STEPS + 1))


@pytest.mark.parametrize("encoder", ENCODERS)
def test_the_state_of_some_images_is_theirs(encoder: str) -> None:
    """A run that goes on with some of the images, in another order too, gives them what they had given."""
    model = network(encoder, kernel="auto").float()
    images = encodable(encoder, 6, STEPS)
    whole, _ = full_run(model, images)
    _, state = model(frames_of(model, images, 4))
    for some in (torch.tensor([True, False, True, True, False, False]), torch.tensor([5, 0, 3])):
        places = torch.arange(6)[some]
        rest = model.encoder(images[some], places, STEPS - 4, start=4, seed=3)
        outputs, after = model(rest, state.of(some))
        assert torch.equal(outputs, whole[4:, places])
        assert all(len(part) == 3 for neuron in after.modules.values() if neuron for part in neuron)


def test_batches_shrink() -> None:
    model = network()
    images = encodable("poisson", IMAGES, STEPS).double()
    margins = margins_of(full_run(model, images)[0])
    bound = float(margins[5].median())
    sizes: list[int] = []
    model.neurons["stem.1"].register_forward_hook(lambda module, inputs, output: sizes.append(output[0].shape[1]))
    got = answer_early(model, images, torch.arange(IMAGES), margin=bound, timesteps=STEPS, seed=3)
    assert sizes == [IMAGES, int((got.steps > 4).sum()), int((got.steps > 8).sum())]
    assert sizes == sorted(set(sizes), reverse=True)
    sizes.clear()
    answer_early(model, images, torch.arange(IMAGES), margin=float(margins[0].min()) / 2, timesteps=STEPS, seed=3)
    assert sizes == [IMAGES]  # all have left in the first chunk


@pytest.mark.parametrize("size", [IMAGES, 7, 1])
def test_what_is_measured_is_what_happens(size: int) -> None:
    """And the images that a bound comes from leave with another answer no more often than promised."""
    model = network()
    images = encodable("poisson", IMAGES, STEPS).double()
    outputs, spikes = full_run(model, images)
    margins, answers = margins_of(outputs), outputs.argmax(2)
    batches: list[Batch] = batches_of(images, LABELS, size)
    margin = evaluate(exit_margin(model, CPU, confidence=0.8, timesteps=STEPS, seed=3), batches)
    assert margin == margin_bound(misleading_margins(margins, answers), 0.8)
    assert 0 < sum(misled(margins, answers, margin)) < 0.2 * (IMAGES + 1)
    steps, classes = leave(margins, answers, margin)
    rows = evaluate(early_exit_accuracy(model, CPU, margin=margin, timesteps=STEPS, seed=3), batches)
    assert {(row["metric"], row.get("step")): row["value"] for row in rows} == pytest.approx(
        {
            ("exit-accuracy", None): sum(c == y for c, y in zip(classes, LABELS.tolist(), strict=True)) / IMAGES,
            ("exit-mean-steps", None): sum(steps) / IMAGES,
            ("exit-spikes-per-image", None): float(sum(spikes[:s, i].sum() for i, s in enumerate(steps))) / IMAGES,
            ("exit-margin", None): margin,
            **{("exit-share", t): sum(s <= t for s in steps) / IMAGES for t in range(1, STEPS + 1)},
        }
    )
