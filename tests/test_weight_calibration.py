"""GradientDescent fitted to the activations of the ANN, layer by layer: what falls, what stays, what it depends on."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from test_conversion import ZOO, calibration
from torch import Tensor, nn
from toy_networks import SHAPE, Residual, encodable, pictures, seeded

from hybridsnn.config import resolve
from hybridsnn.conversion import BALANCERS, CORRECTIONS, Calibration, Correction, spiking_body
from hybridsnn.conversion.balancers.sweep import Layer
from hybridsnn.conversion.corrections.gradient_descent import GradientDescent
from hybridsnn.encoders import ENCODERS
from hybridsnn.errors import ConfigError
from hybridsnn.stages.convert import ConvertConfig

QUICK = {"descent_iterations": 40, "descent_batch_size": 8, "descent_learning_rate": 0.003}


class Watched(GradientDescent):
    """Notes the error of each layer before and after, and whether its weights have changed."""

    def correct(self, layer: Layer) -> None:
        before = float(layer.squared_error())
        super().correct(layer)
        NOTES.append((before, float(layer.squared_error())))


NOTES: list[tuple[float, float]] = []


@pytest.fixture(autouse=True)
def _fresh_notes() -> Iterator[None]:
    NOTES.clear()
    yield
    NOTES.clear()


def converted(
    network: nn.Module, chosen: Calibration, *corrections: Correction, balancer: str = "mmse", **options: Any
) -> torch.fx.GraphModule:
    options = {"biases": True, "initial_potential": 0.5, "granularity": "channel"} | options
    body = spiking_body(network, SHAPE, **options).to(next(network.parameters()).dtype)
    BALANCERS[balancer]().balance(body, chosen, corrections)
    return body


@pytest.mark.parametrize("name", ZOO)
def test_the_error_of_no_layer_rises(name: str) -> None:
    """Whatever the network, and however large the steps."""
    network, chosen = seeded(ZOO[name]()), calibration(pictures(8), timesteps=3)
    for rate in (0.003, 10.0):
        NOTES.clear()
        converted(network, chosen, Watched(**QUICK | {"descent_iterations": 5, "descent_learning_rate": rate}))
        assert NOTES and all(after <= before for before, after in NOTES), NOTES


def test_errors_of_deeper_layers_fall() -> None:
    network, chosen = seeded(Residual()), calibration(pictures(64), timesteps=3)
    converted(network, chosen, Watched(descent_iterations=150, descent_learning_rate=0.003))
    assert sum(after for _, after in NOTES[1:]) < 0.99 * sum(before for before, _ in NOTES[1:]), NOTES


def test_what_does_not_help_is_taken_back() -> None:
    """To the bit."""

    class Useless(GradientDescent):
        def fit(self, layer: Layer, synapse: nn.Module) -> tuple[Tensor, Tensor]:
            return torch.full_like(synapse.get_parameter("weight"), -1e3), -torch.ones_like(
                synapse.get_parameter("bias")
            )

    network, chosen = seeded(Residual()), calibration(pictures(8), timesteps=2)
    plain, same = (converted(network, chosen, *given).state_dict() for given in ([], [Useless()]))
    assert all(torch.equal(same[name], tensor) for name, tensor in plain.items())


class Disturbed(GradientDescent):
    """Makes the weights before one layer too large, and notes the error before and after it is corrected."""

    layer: int

    def correct(self, layer: Layer) -> None:
        NOTES.append((0.0, 0.0))
        if len(NOTES) == self.layer:
            assert layer.synapse is not None
            layer.synapse.get_parameter("weight").mul_(1.3)
            layer.forget()
            before = float(layer.squared_error())
            super().correct(layer)
            NOTES[-1] = before, float(layer.squared_error())


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("layer", [1, 3])
def test_disturbed_weights_come_back(encoder: str, layer: int) -> None:
    """Of a first layer, and of one where a shortcut, which is given, joins."""
    chosen = calibration(encodable(encoder, 24, 16), encoder, timesteps=16)
    converted(seeded(Residual()), chosen, Disturbed(layer=layer, **QUICK | {"descent_iterations": 100}))
    before, after = NOTES[layer - 1]
    assert after < 0.9 * before


def test_it_depends_on_the_seed_and_not_on_the_order_of_images() -> None:
    network, images = seeded(Residual()).double(), pictures(12).double()
    order = torch.randperm(12, generator=torch.Generator().manual_seed(5))
    whole = calibration(images, timesteps=3)
    found = {}
    for name, chosen in (
        ("whole", whole),
        ("again", whole),
        ("shuffled", replace(whole, images=images[order], indices=order)),
        ("other", replace(whole, seed=1)),
    ):
        found[name] = converted(network, chosen, CORRECTIONS["gradient-descent"](**QUICK)).state_dict()
    for key, tensor in found["whole"].items():
        assert torch.equal(found["again"][key], tensor)
        torch.testing.assert_close(found["shuffled"][key], tensor, rtol=1e-7, atol=1e-10)
    assert any(not torch.allclose(found["other"][key], tensor) for key, tensor in found["whole"].items())


def test_its_options_are_settings_of_convert() -> None:
    config = resolve(
        ConvertConfig, {"balance": "mmse", "correct": ["bias", "gradient-descent"], "descent_iterations": 7}, "c"
    )
    bias, weights = config.corrections().values()
    assert (
        isinstance(weights, GradientDescent) and weights.descent_iterations == 7 and type(bias) is CORRECTIONS["bias"]
    )
    assert config.model_dump()["calibration_images"] == 1024
    given = resolve(ConvertConfig, {"balance": "mmse", "correct": ["gradient-descent"], "calibration_images": 5}, "c")
    assert given.model_dump()["calibration_images"] == 5
    assert (
        resolve(ConvertConfig, {"balance": "mmse", "correct": ["bias"]}, "c").model_dump()["calibration_images"] == 256
    )
    with pytest.raises(
        ConfigError, match=r"^c\.descent_iterations: belongs to gradient-descent; choose it with 'correct', or leav"
    ):
        resolve(ConvertConfig, {"balance": "mmse", "descent_iterations": 7}, "c")
    with pytest.raises(
        ConfigError, match=r"descent_iterations: got 0, must be greater than 0 with correct 'gradient-descent'$"
    ):
        resolve(
            ConvertConfig, {"balance": "mmse", "correct": ["bias", "gradient-descent"], "descent_iterations": 0}, "c"
        )
    with pytest.raises(ConfigError, match=r"^c\.correct\.0: unknown 'gradient'\. Did you mean 'gradient-descent'"):
        resolve(ConvertConfig, {"balance": "mmse", "correct": ["gradient"], "descent_iterations": 7}, "c")
