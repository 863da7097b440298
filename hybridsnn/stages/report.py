"""`report`: tables, figures and an HTML page from evaluations."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import yaml
from pydantic import Field
from pydantic_core import to_jsonable_python

from hybridsnn.artifacts import Artifact, lineage
from hybridsnn.config import StageConfig
from hybridsnn.errors import ArtifactError
from hybridsnn.reporting import NetworkReport, Provenance, write_report
from hybridsnn.stages.base import Stage, Work
from hybridsnn.stages.networks import METRICS, read_metrics


class ReportConfig(StageConfig):
    """Collects all evaluations of the run, or those that `--from` names.

    Writes tables (CSV and Markdown), figures, and `index.html`, one page that holds everything and opens offline.
    """

    title: str = Field("Spiking network report", description="Title of the page.")


def run(work: Work) -> None:
    """Write the report; see `ReportConfig`."""
    from hybridsnn.stages import STAGES  # it holds this stage, so it is complete only after this module

    config = cast(ReportConfig, work.config)
    histories = [lineage(evaluation) for evaluation in work.parents]
    artifacts = list({artifact.path.resolve(): artifact for history in histories for artifact in history}.values())
    names = _names(artifacts)
    # An evaluation has one parent, which comes right before it.
    networks = [_network_report(history[-1], history[-2], names) for history in histories]
    write_report(config.title, networks, [_provenance(a, names, STAGES) for a in artifacts], work.folder)


def _names(artifacts: list[Artifact]) -> dict[Path, str]:
    """The name of each artifact by its folder, with its run where several runs have an artifact of that name."""
    uses = Counter(artifact.name for artifact in artifacts)
    return {
        artifact.path.resolve(): artifact.name
        if uses[artifact.name] == 1
        else f"{artifact.path.resolve().parent.name}/{artifact.name}"
        for artifact in artifacts
    }


def _network_report(evaluation: Artifact, network: Artifact, names: Mapping[Path, str]) -> NetworkReport:
    if evaluation.manifest.data is None:
        raise ArtifactError(f"{evaluation.path}: the manifest names no data set")
    metrics = read_metrics(evaluation)
    history = read_metrics(network) if METRICS in network.manifest.files else None
    if history is not None and "epoch" in history and history["epoch"].isna().all():
        history = None
    operation = evaluation.config().get("operation", "streaming")
    return NetworkReport(
        label=names[network.path.resolve()] + ("" if operation == "streaming" else f", {operation}"),
        kind=network.kind,
        stage=network.manifest.stage,
        dataset=evaluation.manifest.data.name,
        split=str(metrics["split"].iloc[0]),
        evaluation=metrics,
        history=history,
    )


def _provenance(artifact: Artifact, names: Mapping[Path, str], stages: Mapping[str, Stage]) -> Provenance:
    manifest = artifact.manifest
    return Provenance(
        name=names[artifact.path.resolve()],
        kind=artifact.kind,
        stage=manifest.stage,
        digest=artifact.digest,
        created=f"{manifest.created:%Y-%m-%d %H:%M} UTC",
        wall_seconds=manifest.wall_seconds,
        device=manifest.device,
        peak_memory_bytes=manifest.peak_memory_bytes,
        versions=dict(manifest.versions),
        parents=tuple(names[(artifact.path.resolve() / parent.path).resolve()] for parent in manifest.parents),
        config=yaml.safe_dump(artifact.config(), sort_keys=False),
        chosen=_chosen(artifact, stages),
    )


def _chosen(artifact: Artifact, stages: Mapping[str, Stage]) -> dict[str, str]:
    """The settings, as text, that differ from the present defaults of their stage."""
    stage = stages.get(artifact.manifest.stage)
    settings = stage.settings(bool(artifact.manifest.parents)) if stage is not None else StageConfig
    fields = settings.completed(artifact.config()).model_fields
    defaults = {
        name: to_jsonable_python(field.get_default(call_default_factory=True))
        for name, field in fields.items()
        if not field.is_required()
    }
    return {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for name, value in artifact.config().items()
        if name not in defaults or value != defaults[name]
    }


STAGE = Stage(
    name="report",
    summary="Write tables, figures and a page from evaluations.",
    config=ReportConfig,
    consumes=("evaluation",),
    produces="report",
    run=run,
    folder=lambda config, parents: "report",
    many=True,
    example="hybridsnn report",
)
