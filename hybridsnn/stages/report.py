"""`report`: tables, figures and a page from evaluations."""

from typing import cast

import yaml
from pydantic import Field

from hybridsnn.artifacts import Artifact, lineage
from hybridsnn.config import StageConfig
from hybridsnn.errors import ArtifactError
from hybridsnn.reporting import NetworkReport, Provenance, write_report
from hybridsnn.stages.base import Stage, Work
from hybridsnn.stages.networks import METRICS, read_metrics


class ReportConfig(StageConfig):
    """Gathers all evaluations of the run, or those that `--from` names.

    Writes CSV and Markdown tables, figures, and `index.html`, one page that holds everything and opens without a
    network.
    """

    title: str = Field("Spiking network report", description="Title of the page.")


def run(work: Work) -> None:
    """Write the report; see `ReportConfig`."""
    config = cast(ReportConfig, work.config)
    networks = [_network_report(evaluation) for evaluation in work.parents]
    seen: dict[str, Artifact] = {}
    for evaluation in work.parents:
        seen |= {str(artifact.path): artifact for artifact in lineage(evaluation)}
    write_report(config.title, networks, [_provenance(artifact) for artifact in seen.values()], work.folder)


def _network_report(evaluation: Artifact) -> NetworkReport:
    network = lineage(evaluation)[-2]  # an evaluation has one parent
    if evaluation.manifest.data is None:
        raise ArtifactError(f"{evaluation.path}: the manifest names no data set")
    metrics = read_metrics(evaluation)
    history = read_metrics(network) if METRICS in network.manifest.files else None
    if history is not None and "epoch" in history and history["epoch"].isna().all():
        history = None
    return NetworkReport(
        label=network.name,
        kind=network.kind,
        stage=network.manifest.stage,
        dataset=evaluation.manifest.data.name,
        split=str(metrics["split"].iloc[0]),
        evaluation=metrics,
        history=history,
    )


def _provenance(artifact: Artifact) -> Provenance:
    manifest = artifact.manifest
    return Provenance(
        name=artifact.name,
        kind=artifact.kind,
        stage=manifest.stage,
        digest=artifact.digest,
        created=f"{manifest.created:%Y-%m-%d %H:%M} UTC",
        wall_seconds=manifest.wall_seconds,
        device=manifest.device,
        peak_memory_bytes=manifest.peak_memory_bytes,
        versions=dict(manifest.versions),
        parents=tuple(parent.name for parent in manifest.parents),
        config=yaml.safe_dump(artifact.config(), sort_keys=False),
    )


STAGE = Stage(
    name="report",
    summary="Gather evaluations into tables, figures and a page.",
    config=ReportConfig,
    consumes=("evaluation",),
    produces="report",
    run=run,
    folder=lambda config, parents: "report",
    many=True,
    example="hybridsnn report",
)
