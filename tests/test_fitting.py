"""Thresholds fitted to T, and corrections: against brute force, and as T grows."""

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from test_conversion import CONVERGING, ZOO, activations_of, calibration, chain, fit, readout
from torch import Tensor, nn
from toy_networks import SHAPE, encodable, exact, pictures, seeded

from hybridsnn.conversion import BALANCERS, CORRECTIONS, Calibration, Correction, spiking_body
from hybridsnn.conversion.balancers import calibration as calibrations
from hybridsnn.conversion.balancers import sweep as sweeps
from hybridsnn.encoders import ENCODERS, Encoder
from hybridsnn.model import SpikingModel
from hybridsnn.networks import NETWORKS, NetworkSpec
from hybridsnn.neurons import along_channels
from hybridsnn.program.operations import BATCH_NORMS

FEW = {"gradient-descent": {"descent_iterations": 12, "descent_batch_size": 4}}
OWN = {name: entry(**FEW.get(name, {})) for name, entry in CORRECTIONS.items()}
SETS: dict[str, list[Correction]] = {
    **{name: [correction] for name, correction in OWN.items()},
    "potential per neuron": [CORRECTIONS["potential"](potential_per="neuron")],
    "all": [*OWN.values()],
}
# From when on the error of deep networks falls as 1/T, and a later time.
SETTLES = {"vgg16": (512, 2048), "resnet20": (512, 2048), "resnet34": (2048, 8192)}


def body_for(
    network: nn.Module,
    corrections: list[Correction],
    initial_potential: float = 0.5,
    shape: tuple[int, ...] = SHAPE,
    **options: Any,
) -> torch.fx.GraphModule:
    potentials = next((found for each in corrections if (found := each.potentials)), None)
    biases = any(each.biases for each in corrections)
    options |= {"biases": biases, "potentials": potentials, "initial_potential": initial_potential}
    return spiking_body(network, shape, **options)


@torch.no_grad()
def errors(network: nn.Sequential, body: torch.fx.GraphModule, chosen: Calibration) -> list[float]:
    """The mean squared error of each layer, in units of the ANN, from a plain simulation."""
    rates: dict[str, Tensor] = {}
    model = SpikingModel(body, chosen.encoder).eval()
    frames = chosen.encoder(chosen.images, chosen.indices, chosen.timesteps, seed=chosen.seed)
    model(frames, observe=lambda name, spikes: rates.__setitem__(name, spikes.mean(0)))
    found, unit, value = [], torch.tensor(chosen.encoder.scale), chosen.images
    thresholds = {name: neuron.threshold for name, neuron in model.neurons.items()}
    for name, layer in network.named_children():
        value = layer(value)
        if isinstance(layer, nn.ReLU):
            threshold = along_channels(thresholds[name], value)
            found.append(float((rates[name] * threshold * unit - value).square().mean()))
            unit = unit * thresholds[name].max()
    return found


@pytest.mark.parametrize("granularity", ["layer", "channel"])
@pytest.mark.parametrize("timesteps", [1, 3])
@torch.no_grad()
def test_mmse_is_the_search_over_candidates(timesteps: int, granularity: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the units of the ANN: neurons send their amplitude, an amplitude for each layer or channel."""
    network = exact(seeded(chain(bias=True))).double()
    images = pictures(6).double()
    chosen = calibration(images, timesteps=timesteps)
    body = spiking_body(network, SHAPE, granularity=granularity, initial_potential=0.5).double()
    found = BALANCERS["mmse"]().balance(body, chosen)

    def simulate(frames: list[Tensor], amplitude: Tensor) -> list[Tensor]:
        shaped = amplitude.view(-1, *[1] * (frames[0].dim() - 2)) if amplitude.dim() else amplitude
        membrane, sent = shaped / 2 + torch.zeros_like(frames[0]), []
        for frame in frames:
            membrane = membrane + frame
            spikes = (membrane >= shaped).double() * shaped
            membrane = membrane - spikes
            sent.append(spikes)
        return sent

    values, frames, unit, place = images, [images] * timesteps, 1.0, 0
    for layer in network:
        values, frames = layer(values), [frame if isinstance(layer, nn.ReLU) else layer(frame) for frame in frames]
        if not isinstance(layer, nn.ReLU):
            continue
        groups = [slice(c, c + 1) for c in range(values.shape[1])] if granularity == "channel" else [slice(None)]
        chosen_amplitudes = []
        for group in groups:
            target = values[:, group]

            seen = [frame[:, group] for frame in frames]

            def error(amplitude: float, target: Tensor = target, seen: list[Tensor] = seen) -> float:
                sent = simulate(seen, torch.tensor(amplitude, dtype=torch.float64))
                return float((sum(sent) / timesteps - target).square().sum())

            peak, spacing = float(target.max()), 0.9 / 39
            coarse = min((peak * (0.1 + k * spacing) for k in range(40)), key=error)
            chosen_amplitudes.append(min((coarse + peak * spacing * k / 4 for k in range(-3, 4)), key=error))
        amplitude = torch.tensor(chosen_amplitudes, dtype=torch.float64)
        amplitude = torch.where(amplitude > 0, amplitude, unit)
        name, threshold = list(found.items())[place]
        expected = amplitude / unit if granularity == "channel" else amplitude[0] / unit
        torch.testing.assert_close(threshold, expected, rtol=1e-9, atol=0, msg=f"{name}: {threshold} {expected}")
        frames = simulate(frames, amplitude if granularity == "channel" else amplitude[0])
        unit, place = float(amplitude.max()), place + 1
    assert place == 3


@pytest.mark.parametrize("granularity", ["layer", "channel"])
@pytest.mark.parametrize("corrections", SETS)
@pytest.mark.parametrize("balancer", ["max", "mmse"])
def test_corrections_lower_the_error(balancer: str, corrections: str, granularity: str) -> None:
    """Where neurons that start from 0 round down: in all layers together, and in the first, whose currents are those of
    the ANN, so that weights are right there."""
    network = seeded(chain())
    chosen = calibration(pictures(32), timesteps=4)
    bodies = [body_for(network, given, 0.0, granularity=granularity) for given in ([], SETS[corrections])]
    names = [set(body.state_dict()) for body in bodies]
    for body, given in zip(bodies, ([], SETS[corrections]), strict=True):
        BALANCERS[balancer]().balance(body, chosen, given)
    plain, corrected = (errors(network, body, chosen) for body in bodies)
    shifts = corrections != "weights"
    assert (corrected[0] < plain[0] if shifts else corrected[0] == plain[0]) and sum(corrected) < sum(plain)
    assert names[0] < names[1] and [set(body.state_dict()) for body in bodies] == names


@pytest.mark.parametrize("corrections", ["none", *SETS])
@pytest.mark.parametrize("balancer", CONVERGING)
def test_the_error_falls_like_one_over_t(balancer: str, corrections: str) -> None:
    """On networks in turn; eight times the steps leave at most a quarter of the error."""
    given = SETS.get(corrections, [])
    turn = CONVERGING.index(balancer) * (len(SETS) + 1) + ["none", *SETS].index(corrections)
    network = seeded(ZOO[list(ZOO)[turn % len(ZOO)]]())
    images, rests = pictures(6), {}
    options = {"percentile": 100.0} if balancer == "percentile" else {}
    for timesteps in (16, 128):
        body = body_for(network, given)
        BALANCERS[balancer](**options).balance(body, calibration(images, timesteps=timesteps), given)
        _, rests[timesteps] = fit(readout(body, Encoder("direct"), images, timesteps), network(images).detach())
    assert rests[128] < 0.07 and rests[128] < rests[16] / 4, rests


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_the_registry_converge_with_time(name: str) -> None:
    """The error of the mean output falls as 1/T, in double precision. Deep networks begin to do so late.

    Random weights; batch norms have the statistics of one pass.
    """
    few, many = SETTLES.get(name, (64, 512))
    side = max(8, NETWORKS[name].smallest)
    shape = (1, side, side)
    network = seeded(NetworkSpec(name, shape, 3, width=0.04, batch_norm=True, dropout=0.0).build()).double()
    images, rests = pictures(4, shape).double(), {}
    for module in network.modules():
        if isinstance(module, BATCH_NORMS):
            module.reset_running_stats()
            module.momentum = None
            module.train()
    with torch.no_grad():
        network(images)
        logits = network.eval()(images)
    body = body_for(network, [], shape=shape).double()
    BALANCERS["activation-max"]().balance(body, calibration(images, timesteps=few), [])
    for timesteps in (few, many):
        _, rests[timesteps] = fit(readout(body, Encoder("direct"), images, timesteps), logits)
    assert rests[many] < 2.5 * few / many * rests[few], rests


@torch.no_grad()
def test_weights_are_least_squares() -> None:
    """Of the readout: nothing linear in the mean spikes is left of the error; and a hard penalty changes nothing."""
    network = seeded(chain()).double()
    images = pictures(64).double()
    for ridge, fits in ((1e-12, True), (1e12, False)):
        given = [CORRECTIONS["weights"](weights_ridge=ridge, weights_rounds=1)]
        body = body_for(network, given).double()
        last: list[Tensor] = []
        BALANCERS["mmse"]().balance(body, calibration(images, timesteps=4), given)
        model = SpikingModel(body, Encoder("direct")).eval()
        outputs, _ = model(images.expand(4, *images.shape), observe=lambda name, spikes, last=last: last.append(spikes))
        scale = math.prod(float(neuron.threshold) for neuron in model.neurons.values())
        error = outputs[-1] / 4 - network(images) / scale
        rates = last[-1].mean(0).flatten(1)
        left = (rates - rates.mean(0)).T @ (error - error.mean(0))
        assert (float(left.abs().max()) < 1e-6 * float(error.abs().max()) * len(images)) == fits
        assert (float(error.mean(0).abs().max()) < 1e-6 * float(outputs.abs().max())) or not fits


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("balancer", ["max", "mmse"])
def test_corrections_do_not_depend_on_order_or_batches(
    balancer: str, encoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = seeded(chain()).double()
    images, order = encodable(encoder, 7, 8).double(), torch.tensor([3, 6, 0, 1, 5, 2, 4])
    whole = calibration(images, encoder, timesteps=4)
    shuffled = replace(whole, images=images[order], indices=order)
    found = []
    monkeypatch.setattr(sweeps, "SAMPLES", 50)
    for chosen, frames, room in ((whole, 8, 2**30), (shuffled, 16, 0), (shuffled, 10**6, 20000)):
        monkeypatch.setattr(calibrations, "FRAMES", frames)
        monkeypatch.setattr(sweeps, "CURRENTS", room)
        body = body_for(network, SETS["all"]).double()
        BALANCERS[balancer]().balance(body, chosen, SETS["all"])
        found.append(copy.deepcopy(body.state_dict()))
    for other in found[1:]:
        for name, value in found[0].items():
            torch.testing.assert_close(other[name], value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("granularity", ["layer", "channel"])
@torch.no_grad()
def test_ltb_in_plain_words(granularity: str) -> None:
    network = seeded(chain(bias=True)).double()
    images = pictures(5).double()
    body = spiking_body(network, SHAPE, granularity=granularity).double()
    found = list(BALANCERS["ltb"](passes=4).balance(body, calibration(images)).values())
    amplitudes: list[Any] = [0.0, 0.0, 0.0]
    for turn in range(4):
        values, place, raised = images, 0, []
        for layer in network:
            values = layer(values)
            if isinstance(layer, nn.ReLU):
                above = (values - amplitudes[place]).clamp(min=0)
                axes = [axis for axis in range(values.dim()) if axis != 1 or granularity == "layer"]
                raised.append(amplitudes[place] + 2 * above.mean(axes, keepdim=True))
                values = torch.minimum(values, amplitudes[place]) if turn else values
                place += 1
        amplitudes = raised
    unit = 1.0
    for threshold, amplitude in zip(found, amplitudes, strict=True):
        expected = torch.where(amplitude > 0, amplitude / unit, 1.0).flatten()
        torch.testing.assert_close(threshold.flatten(), expected, rtol=1e-9, atol=0)
        unit *= float(expected.max())


@pytest.mark.parametrize("timesteps", [1, 4])
@pytest.mark.parametrize(("balancer", "margin"), [("lloyd", 1.001), ("mmse", 1.01)])
@torch.no_grad()
def test_no_threshold_of_a_fine_grid_is_better(balancer: str, margin: float, timesteps: int) -> None:
    """In the first layer, whose neurons follow the staircase: to the width of a bin, or between two candidates."""
    network = seeded(chain()).double()
    images = pictures(8).double()
    body = spiking_body(network, SHAPE, initial_potential=0.5).double()
    found = float(BALANCERS[balancer]().balance(body, calibration(images, timesteps=timesteps))["1"])
    activation = torch.from_numpy(activations_of(network, images)[0])

    def error(threshold: float) -> float:
        rate = (activation * timesteps / threshold + 0.5).floor().clamp(0, timesteps) / timesteps
        return float((threshold * rate - activation).square().mean())

    peak = float(activation.max())
    assert error(found) < margin * min(error(peak * share / 500) for share in range(20, 501))
