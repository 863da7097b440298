"""Settings: strict types, every problem at once, hashes that see what matters, YAML without its traps."""

from pathlib import Path

import pytest
from pydantic import Field, model_validator
from toy_stages import TrainConfig

from hybridsnn.config import StageConfig, canonical, config_hash, from_yaml, resolve, to_yaml, yaml_mapping
from hybridsnn.errors import ConfigError


def test_every_problem_is_named_in_one_line() -> None:
    values = {"epochs": "x", "rate": "fast", "methd": 1, "method": "stbd", "mode": "left"}
    with pytest.raises(ConfigError) as caught:
        resolve(TrainConfig, values, "finetune")
    message = str(caught.value)
    assert "\n" not in message
    assert "finetune.epochs: got 'x', must be a valid integer" in message
    assert "finetune.rate: got 'fast', must be a valid number" in message
    assert "finetune: unknown 'methd'. Did you mean 'method'?" in message
    assert "finetune.method: unknown 'stbd'. Did you mean 'stdb'? Choices: linear, plain, stdb" in message
    assert "finetune.mode: got 'left', must be 'up' or 'down'" in message


@pytest.mark.parametrize("values", [{"epochs": "3"}, {"epochs": True}, {"epochs": 0}, {"epochs": 1.5}, {"bias": 1}])
def test_types_are_strict(values: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        resolve(TrainConfig, values, "train")


def test_plain_values_become_typed_ones() -> None:
    config = resolve(TrainConfig, {"rate": 1, "weights": "w.pt", "other_method": "stdb"}, "train")
    assert config.rate == 1.0
    assert config.weights == Path("w.pt")
    assert config.other_method == "stdb"


def test_a_missing_setting_and_a_rule_over_several_are_told() -> None:
    class Ranged(StageConfig):
        low: int = Field(description="Lower end.")
        high: int = Field(description="Upper end.")

        @model_validator(mode="after")
        def ordered(self) -> "Ranged":
            if self.low > self.high:
                raise ValueError(f"low {self.low} is above high {self.high}")
            return self

    with pytest.raises(ConfigError, match=r"^s\.high: is required$"):
        resolve(Ranged, {"low": 1}, "s")
    with pytest.raises(ConfigError, match=r"^s: low 2 is above high 1$"):
        resolve(Ranged, {"low": 2, "high": 1}, "s")


def test_the_hash_sees_settings_but_not_locations() -> None:
    base = config_hash(TrainConfig())
    assert config_hash(TrainConfig(epochs=4)) != base
    assert config_hash(TrainConfig(weights=Path("elsewhere"))) == base
    assert "weights" not in canonical(TrainConfig())


@pytest.mark.parametrize("config", [TrainConfig(), TrainConfig(rate=1e-5, weights=Path("w"))])
def test_yaml_round_trip(config: TrainConfig) -> None:
    assert from_yaml(TrainConfig, to_yaml(config), "train") == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", r"^f: line 3: the key 'a' is repeated$"),
        ("x: {a: 1, a: 2}", r"^f: line 1: the key 'a' is repeated$"),
        ("- 1", r"^f: must be a mapping of keys to values, got list$"),
        ("a: [", r"^f: line 1: "),
        ("a: 'x\x00'", r"^f: not YAML: "),
        ("a: !!python/object:os.system 1", r"^f: line 1: could not determine a constructor"),
    ],
)
def test_what_is_wrong_with_yaml(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        yaml_mapping(text, "f")


def test_yaml_numbers_and_anchors() -> None:
    assert yaml_mapping("a: 1e-4\nb: '1e-4'\nc: 3", "f") == {"a": 1e-4, "b": "1e-4", "c": 3}
    assert yaml_mapping("2024-05-01: 2024-05-02", "f") == {"2024-05-01": "2024-05-02"}
    merged = yaml_mapping("s: {a: &a {x: 1}, b: &b {<<: *a, x: 2}}\nt: {c: {<<: *b}}", "f")
    assert merged["t"] == {"c": {"x": 2}}
