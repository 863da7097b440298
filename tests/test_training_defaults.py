"""What `train-ann` does for each data set if nothing else is asked for."""

from dataclasses import asdict
from pathlib import Path

import pytest
from click.testing import CliRunner

from hybridsnn.cli import command_line
from hybridsnn.config import from_yaml, resolve, to_yaml
from hybridsnn.data import DATASETS, TrainingDefaults
from hybridsnn.networks import NETWORKS
from hybridsnn.stages.finetune import FinetuneConfig
from hybridsnn.stages.train_ann import TrainConfig


@pytest.mark.parametrize("name", DATASETS)
def test_settings_that_are_not_set_are_the_data_set_s(name: str, tmp_path: Path) -> None:
    """All are valid, and are recorded; its images are large enough for its network."""
    entry = DATASETS[name]
    config = resolve(TrainConfig, {"dataset": name}, "train-ann")
    expected = asdict(entry.training) | {"dataset": name, "augmentation": entry.augmentation}
    assert {setting: getattr(config, setting) for setting in expected} == expected
    assert from_yaml(TrainConfig, to_yaml(config), "train-ann") == config
    assert entry.size is None or entry.size >= NETWORKS[config.network].smallest


@pytest.mark.parametrize("name", DATASETS)
def test_what_is_set_wins(name: str) -> None:
    values = {
        "dataset": name, "network": "vgg9", "batch_norm": False, "epochs": 1, "batch_size": 7, "optimizer": "adam",
        "learning_rate": 1e-3, "schedule": "constant", "weight_decay": 0.0, "decay_biases": True,
        "label_smoothing": 0.3, "average_decay": 0.5, "augmentation": "none",
    }  # fmt: skip
    assert values.keys() == asdict(TrainingDefaults()).keys() | {"dataset", "augmentation"}
    config = resolve(TrainConfig, values, "train-ann")
    assert {setting: getattr(config, setting) for setting in values} == values


def test_digits_are_trained_as_before_there_were_defaults_of_others() -> None:
    """In Python, without a data set, the settings are theirs too."""
    config = resolve(TrainConfig, {}, "train-ann")
    assert config == TrainConfig(augmentation="shift")
    assert (config.network, config.epochs, config.learning_rate, config.optimizer) == ("digits-cnn", 30, 0.05, "sgd")
    assert (config.label_smoothing, config.average_decay, config.decay_biases) == (0.0, 0.0, True)


def test_help_and_lists_tell_them() -> None:
    told = CliRunner().invoke(command_line, ["train-ann", "--help"]).output
    assert (
        " ".join(told.split()).count("depends on --dataset")
        == len(TrainConfig.follows)
        == len(asdict(TrainingDefaults()))
    )
    assert "depends on" not in CliRunner().invoke(command_line, ["load-ann", "--help"]).output
    assert not FinetuneConfig.follows
    listed = CliRunner().invoke(command_line, ["list", "datasets"]).output
    for entry in DATASETS.values():
        assert f"train-ann: {entry.training}\n" in listed
    assert "vgg8 with batch norm, 40 epochs in batches of 128, nesterov at 0.1, one-cycle" in listed
