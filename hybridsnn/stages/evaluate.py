"""`evaluate`: one pass over images gives accuracy at every step, firing rates and spikes per image."""

from typing import Literal, cast

from pydantic import Field

from hybridsnn.config import StageConfig
from hybridsnn.errors import ConfigError
from hybridsnn.metrics import evaluate_ann, evaluate_snn
from hybridsnn.model import SpikingModel
from hybridsnn.stages.base import Stage, Work
from hybridsnn.stages.compute import PRECISION, Precision, fabric_for
from hybridsnn.stages.images import open_again
from hybridsnn.stages.networks import load_network, write_metrics


class EvaluateConfig(StageConfig):
    """Measures each network of the run, or the one that `--from` names.

    One simulation gives the accuracy for every number of time steps up to T. This is the only stage that sees the
    test images.
    """

    split: Literal["test", "validation"] = Field("test", description="Which images.")
    timesteps: int | None = Field(None, gt=0, description="Time steps T; unset: those of the network.")
    batch_size: int = Field(100, gt=0, description="Images at once; changes no result.")
    precision: Precision = Field("32-true", description=PRECISION)
    seed: int = Field(0, ge=0, description="Seed of random spikes.")


def run(work: Work) -> None:
    """Evaluate and save; see `EvaluateConfig`."""
    config = cast(EvaluateConfig, work.config)
    fabric = fabric_for(work, config.precision)
    network, description = load_network(work.parents[0])
    pictures = open_again(description.images, work)
    source = pictures.measuring(config.split, config.batch_size)
    if len(source) == 0:
        raise ConfigError(f"evaluate.split: '{config.split}' has no images; the network kept none back for validation")
    batches = work.environment.progress.track(source.epoch(0), f"evaluate {work.parents[0].name}", len(source))
    network = fabric.to_device(network)
    with fabric.autocast():
        if description.spiking is None:
            rows = evaluate_ann(network, batches, fabric.device)
        else:
            timesteps = config.timesteps or description.spiking.timesteps
            rows = evaluate_snn(
                cast(SpikingModel, network), batches, fabric.device, timesteps=timesteps, seed=config.seed
            )
    write_metrics(work.folder, STAGE.name, config.split, rows)


STAGE = Stage(
    name="evaluate",
    summary="Measure networks on the test images.",
    config=EvaluateConfig,
    consumes=("ann", "snn"),
    produces="evaluation",
    run=run,
    folder=lambda config, parents: f"evaluate-{parents[0].name}",
    each=True,
    example="hybridsnn evaluate",
)
