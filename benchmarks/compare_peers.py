"""hybridsnn against SpikingJelly and snnTorch, against the ANN, and its balancing against its simulation.

First a check that all compute the same thing: with the same weights, thresholds and frames every layer must fire as
in a plain loop. With weights on a grid, where float32 sums are exact, the counts of spikes are equal; with real
weights, where a sum depends on its order, they differ by at most 1 in 2,000 of a layer's neurons and steps (with
bfloat16, 1 in 400). One library in its two memory layouts differs by up to half of that. A path that fails gets no
figures, and the exit code is 1.

Then times, all ways in turns, and memory, as ratios:

- inference and training step: time of the peer / ours, at several rates of firing, since what an event-driven path
  gains depends on them; snnTorch, simulation and balancing at 5 % only. Losses are the
  cross-entropy of the summed readout; ours learns by STDB, SpikingJelly with its `PiecewiseQuadratic`, snnTorch with
  its arctangent. All use the same fused Adam with amsgrad, at a learning rate of 0, so that rates stay what they are.
- memory: peak live bytes of activations in a training step, ours / the peer's. Weights, their gradients and the
  optimiser's state, which are the same for all, are left out: see `activations.py`. Both are measured twice: as it
  comes, and with an eighth of the most sparing peer's memory as our `memory_budget`.
- simulation: time of our simulation / the ANN's on T times as many images.
- balancing: time of `--balance max` / that of one simulation of the balanced network on the same images; thresholds
  are first checked against that plain loop, bit for bit on the grid.
"""

import argparse
import gc
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import plain
import torch
from activations import activation_bytes
from lightning_fabric import Fabric
from networks import CASES, Case, Specimen
from peers import PEERS, TOLERANCES, first_difference, spike_counts
from results import markdown, rate_table, ratio_table, write
from timing import in_turns, ratios
from torch import fx, nn
from torch.nn import functional

from hybridsnn.conversion import Calibration, MaximumCurrent, spiking_body
from hybridsnn.learning import RULES
from hybridsnn.learning.loop import at_precision
from hybridsnn.model import SpikingModel
from hybridsnn.stages.compute import has_bfloat16, keep_freed_memory

OURS = "hybridsnn"
RATES = (0.01, 0.05, 0.15, 0.25)
AT_ALL_RATES = ("spikingjelly-channels-last",)  # what is fastest of the others on a CPU
WITHIN = " within an eighth of the memory"
TARGETS = {
    "32-true": {
        "inference": ">= 1.35, aim 2",
        "training step": ">= 1.5, aim 2",
        "training step" + WITHIN: ">= 1.5, aim 2",
        "memory of a training step": "",
        "memory of a training step" + WITHIN: "<= 0.125",
        "simulation": "<= 1.3",
        "balancing": "<= 1.6",
    }
}
TARGETS["bf16-mixed"] = TARGETS["32-true"] | {
    "inference": ">= 2.8, aim 4",
    "training step": ">= 3, aim 4",
    "training step" + WITHIN: ">= 3, aim 4",
}


@dataclass(frozen=True)
class Setting:
    """How everything is measured: Fabric gives device and precision to all alike."""

    precision: str
    device: str
    repeats: int

    @cached_property
    def fabric(self) -> Fabric:
        """At the precision asked for."""
        return Fabric(accelerator=self.device, devices=1, precision=self.precision)

    @cached_property
    def exact_fabric(self) -> Fabric:
        """In float32, which sums on a grid exactly."""
        return Fabric(accelerator=self.device, devices=1, precision="32-true")


@dataclass(frozen=True)
class Row:
    """A ratio: the median over the rounds, the smallest and the largest."""

    measure: str
    between: str
    network: str
    timesteps: int
    batch: int
    rate: float
    precision: str
    device: str
    median: float
    smallest: float
    largest: float
    target: str


class Comparison:
    """The rows of one network."""

    def __init__(self, case: Case, setting: Setting):
        self.case, self.setting = case, setting
        self.rows: list[Row] = []

    def add(self, measure: str, between: str, median: float, smallest: float, largest: float) -> None:
        """Add a row."""
        case, setting = self.case, self.setting
        target = TARGETS[setting.precision][measure] if case.rate == Case.rate else ""
        self.rows.append(
            Row(
                measure, between, case.name, case.timesteps, case.batch, case.rate, setting.precision, setting.device,
                float(median), float(smallest), float(largest), target,
            )
        )  # fmt: skip

    def time(self, measure: str, ways: dict[str, Callable[[], object]], base: str) -> None:
        """Add a row for each way: its time / that of `base`."""
        self.add_times(measure, in_turns(ways, self.setting.repeats), base)

    def add_times(self, measure: str, seconds: pd.DataFrame, base: str) -> None:
        """The same of times that were taken: columns by way, rows by round."""
        relative = ratios(seconds, base)
        for name, ratio in relative.drop(base).iterrows():
            self.add(measure, f"{name} / {base}", ratio["median"], ratio["smallest"], ratio["largest"])


def failing(case: Case, setting: Setting, peers: list[str]) -> dict[str, str]:
    """The ways that do not fire as a plain loop does, each with the first layer that differs; prints the rates."""
    found: dict[str, str] = {}
    for exact in (True, False):
        specimen = Specimen.of(case, exact=exact, device=setting.device)
        fabric = setting.exact_fabric if exact else setting.fabric
        with fabric.autocast():
            right = spike_counts(partial(plain.simulate, specimen), specimen.frames)
        silent = [name for name, (count, _) in right.items() if count == 0]
        assert not silent, f"no spike in {silent}"
        for way in (OURS, *peers):
            network = specimen.model if way == OURS else PEERS[way].build(specimen.model)
            counts = spike_counts(fabric.setup_module(network), specimen.frames)
            difference = first_difference(counts, right, 0 if exact else TOLERANCES[setting.precision])
            if difference is not None:
                found.setdefault(way, f"{difference} ({'weights on the grid' if exact else 'real weights'})")
    print(f"{case.name}, T = {case.timesteps}, batch {case.batch}: spikes a neuron and step")
    print(", ".join(f"{name} {count / most:.4f}" for name, (count, most) in right.items()), flush=True)
    return found


def training_steps(network: nn.Module, *backwards: Callable[[], object]) -> list[Callable[[], None]]:
    """For each way of forward and backward pass a training step: one call is both and the update."""
    learned = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimiser = torch.optim.Adam(learned, lr=0.0, amsgrad=True, fused=True)

    def step(backward: Callable[[], object]) -> None:
        optimiser.zero_grad(set_to_none=True)
        backward()
        optimiser.step()

    return [partial(step, backward) for backward in backwards]


def against_peers(comparison: Comparison, peers: list[str], budget: int | None = None) -> int | None:
    """Inference, training step and, unless a memory budget is known already, its memory; gives the budget."""
    setting = comparison.setting
    specimen = Specimen.of(comparison.case, device=setting.device)
    frames, labels, fabric = specimen.frames, specimen.labels, setting.fabric
    networks: dict[str, Any] = {OURS: specimen.model, **{peer: PEERS[peer].build(specimen.model) for peer in peers}}
    wrapped: dict[str, Any] = {peer: fabric.setup_module(networks[peer]) for peer in peers}
    wrapped[OURS] = at_precision(fabric, specimen.model)

    def simulation(name: str) -> Callable[[], object]:
        return torch.no_grad()(lambda: wrapped[name](frames))

    comparison.time("inference", {name: simulation(name) for name in networks}, OURS)

    def learn(budget: int | None) -> Callable[[], object]:
        rule = RULES["stdb"](memory_budget=None if budget is None else budget / 2**30)
        return lambda: rule.step(wrapped[OURS], frames, labels, fabric.backward)

    def learn_as(peer: str) -> Callable[[], object]:
        return lambda: fabric.backward(functional.cross_entropy(wrapped[peer](frames), labels))

    steps = {peer: training_steps(networks[peer], learn_as(peer))[0] for peer in peers}
    measures, peaks = budget is None, {}
    if measures and peers:
        peaks = {peer: activation_bytes(networks[peer], steps[peer]) for peer in peers}
        budget = min(peaks.values()) // 8
    ours = dict(zip(("", WITHIN), training_steps(specimen.model, learn(None), learn(budget)), strict=True))
    # The peers run once in each round for both.
    seconds = in_turns({**{OURS + limits: step for limits, step in ours.items()}, **steps}, setting.repeats)
    for limits, step in ours.items():
        each = seconds[[OURS + limits, *peers]].rename(columns={OURS + limits: OURS})
        comparison.add_times("training step" + limits, each, OURS)
        if measures:
            taken = activation_bytes(specimen.model, step)
            for peer in peers:
                ratio = taken / peaks[peer]
                comparison.add("memory of a training step" + limits, f"{OURS} / {peer}", ratio, ratio, ratio)
    return budget


@torch.no_grad()
def against_ann(comparison: Comparison) -> None:
    """The simulation of Poisson frames and of a constant image, and the ANN on T times as many images."""
    setting = comparison.setting
    ways: dict[str, Callable[[], object]] = {}
    for encoder in ("poisson", "direct"):
        specimen = Specimen.of(comparison.case, encoder=encoder, device=setting.device)
        model, frames = setting.fabric.setup_module(specimen.model), specimen.frames
        ways[f"{encoder} coding"] = lambda model=model, frames=frames: model(frames)
    ann = setting.fabric.setup_module(specimen.ann.to(memory_format=torch.channels_last))
    images = specimen.images_of_ann
    comparison.time("simulation", {**ways, "ann": lambda: ann(images)}, "ann")


def body_of(specimen: Specimen) -> fx.GraphModule:
    """The ANN of a specimen as a spiking network that is not yet balanced."""
    body = spiking_body(specimen.ann, tuple(specimen.images.shape[1:]))
    return body.to(memory_format=torch.channels_last)


def calibration_of(specimen: Specimen) -> Calibration:
    """The images and the encoder of a specimen."""
    return Calibration(specimen.images, torch.arange(len(specimen.images)), specimen.model.encoder)


def balancer_of(specimen: Specimen) -> MaximumCurrent:
    """`--balance max` with the T of a specimen."""
    return MaximumCurrent(calibration_timesteps=len(specimen.frames))


def balancing(comparison: Comparison) -> str | None:
    """Thresholds by `--balance max`, against a plain loop and one simulation; the first that differs, in words."""
    device = comparison.setting.device
    specimen = Specimen.of(comparison.case, exact=True, device=device)
    right = plain.thresholds(specimen)
    balancer = balancer_of(specimen)
    for name, threshold in balancer.measure(body_of(specimen), calibration_of(specimen)).items():
        if not torch.equal(threshold, right[name]):
            return f"layer {name}: {float(threshold)} and, by a plain loop, {float(right[name])}"
    specimen = Specimen.of(comparison.case, device=device)
    calibration = calibration_of(specimen)
    body = body_of(specimen)
    balancer.measure(body, calibration)
    model = SpikingModel(body, specimen.model.encoder).eval()

    @torch.no_grad()
    def simulation() -> None:
        model(calibration.encoder(calibration.images, calibration.indices, balancer.calibration_timesteps))

    bodies = [body_of(specimen) for _ in range(1 + comparison.setting.repeats)]  # each is changed by it
    ways = {"balance max": lambda: balancer.measure(bodies.pop(), calibration), "simulation": simulation}
    comparison.time("balancing", ways, "simulation")
    return None


def compare(
    case: Case, setting: Setting, peers: list[str], budget: int | None
) -> tuple[list[Row], list[str], int | None]:
    """All rows of one network, what failed its check, and the memory budget within which training was timed.

    If that budget is known from another rate, only the times beside other libraries.
    """
    comparison = Comparison(case, setting)
    wrong = failing(case, setting, peers)
    failures = [
        f"{case.name}, {case.rate:.0%}, {setting.precision}, {way}: {difference}" for way, difference in wrong.items()
    ]
    if OURS in wrong:
        return [], failures, budget
    whole = budget is None
    budget = against_peers(comparison, [peer for peer in peers if peer not in wrong], budget)
    gc.collect()  # networks and the closures around them refer to each other
    if whole:
        against_ann(comparison)
        gc.collect()
    if whole and setting.precision == "32-true":  # what thresholds are measured at
        difference = balancing(comparison)
        failures += [f"{case.name}, {setting.precision}, balancing: {difference}"] if difference else []
    return comparison.rows, failures, budget


def main() -> None:
    """Check, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument(
        "--rates", nargs="+", type=float, default=RATES,
        help="spikes a neuron and step, of every layer; all is measured at 0.05 (without it, the first), "
        "elsewhere SpikingJelly alone",
    )  # fmt: skip
    parser.add_argument(
        "--precision", nargs="+", choices=TARGETS, help="unset: 32-true, and bf16-mixed where there are instructions"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, help="folder for peers.csv")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()  # as every stage does; it serves all ways
    torch.backends.cudnn.allow_tf32 = False  # 32-true means it
    installed = []
    for peer in arguments.peers:
        if missing := PEERS[peer].missing:
            print(f"{peer} is left out: {', '.join(missing)} not installed; install the extra 'bench'")
        else:
            installed.append(peer)
    if arguments.device == "cuda" and any(peer.startswith("spikingjelly") for peer in installed):
        from spikingjelly.activation_based.functional import neuron_implementation

        print(f"spikingjelly: {neuron_implementation('if', torch.device('cuda', torch.cuda.current_device()))}")
    precisions = arguments.precision or ["32-true", *(["bf16-mixed"] if has_bfloat16(arguments.device) else [])]
    rates = sorted(arguments.rates, key=lambda rate: rate != Case.rate)  # what is measured in full first

    rows: list[Row] = []
    failures: list[str] = []
    for precision, name in product(precisions, arguments.networks):
        setting, budget = Setting(precision, arguments.device, arguments.repeats), None
        for rate in rates:
            peers = [peer for peer in installed if rate == rates[0] or peer in AT_ALL_RATES]
            some, failed, budget = compare(replace(CASES[name], rate=rate), setting, peers, budget)
            rows += some
            failures += failed
    if rows:
        measured = pd.DataFrame([asdict(row) for row in rows])
        print("\n" + markdown(rate_table(measured)) + "\n\n" + markdown(ratio_table(measured)))
        if arguments.output:
            write(measured, arguments.output / "peers.csv", arguments.device)
    if failures:
        raise SystemExit("\n".join(["no figures for what does not compute the same:", *failures]))


if __name__ == "__main__":
    main()
