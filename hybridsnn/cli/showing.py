"""Commands that show runs, artifacts, and the registered choices."""

import importlib
import json
from pathlib import Path

import click

from hybridsnn.artifacts import MANIFEST, Artifact, lineage, survey
from hybridsnn.cli.console import duration, headline, print_json, print_table
from hybridsnn.cli.options import checkpoints_option
from hybridsnn.errors import ArtifactError
from hybridsnn.registry import unknown

REGISTRIES: dict[str, tuple[str, str]] = {
    "stages": ("hybridsnn.stages", "STAGES"),
    "networks": ("hybridsnn.networks", "NETWORKS"),
    "datasets": ("hybridsnn.data", "DATASETS"),
    "augmentations": ("hybridsnn.data", "AUGMENTATIONS"),
    "balancers": ("hybridsnn.conversion", "BALANCERS"),
    "corrections": ("hybridsnn.conversion", "CORRECTIONS"),
    "encoders": ("hybridsnn.encoders", "ENCODERS"),
    "methods": ("hybridsnn.learning", "RULES"),
    "surrogates": ("hybridsnn.surrogates", "SURROGATES"),
    "optimizers": ("hybridsnn.learning", "OPTIMISERS"),
    "schedules": ("hybridsnn.learning", "SCHEDULES"),
    "kernels": ("hybridsnn.kernels.neuron", "KERNELS"),
    "formats": ("hybridsnn.exporters", "EXPORTERS"),
}


@click.command("show")
@click.argument("what", default="default")
@checkpoints_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show_command(what: str, checkpoints: Path, as_json: bool) -> None:
    """Show a run, or an artifact and what it was made from.

    WHAT is a run (default), a run and an artifact (default/convert-max), or a folder.

    \b
    Example:
        hybridsnn show default/convert-max
    """
    folder = next((path for path in (checkpoints / what, Path(what)) if path.is_dir()), None)
    if folder is None:
        runs = sorted(path.name for path in checkpoints.iterdir() if path.is_dir()) if checkpoints.is_dir() else []
        if not runs or "/" in what:
            Artifact.open(checkpoints / what)
        raise unknown("show", what, runs)
    if (folder / MANIFEST).is_file():
        _show_artifact(Artifact.open(folder), as_json)
    else:
        _show_run(folder, as_json)


def _show_run(folder: Path, as_json: bool) -> None:
    artifacts, problems = survey(folder)
    if as_json:
        listed = [
            {"path": str(a.path), "digest": a.digest, "manifest": a.manifest.model_dump(mode="json")} for a in artifacts
        ]
        print_json({"path": str(folder), "artifacts": listed, "unreadable": [str(problem) for problem in problems]})
        return
    if not artifacts and not problems:
        raise ArtifactError(f"{folder}: holds no artifacts; make one with `hybridsnn train-ann --run {folder.name}`")
    rows = []
    for artifact in artifacts:
        manifest = artifact.manifest
        numbers = ", ".join(f"{label} {value}" for label, value in headline(artifact).items())
        parents = ", ".join(parent.name for parent in manifest.parents)
        made = f"{manifest.created:%Y-%m-%d %H:%M}"
        rows.append(
            (artifact.name, manifest.kind, manifest.stage, parents, made, duration(manifest.wall_seconds), numbers)
        )
    print_table(("artifact", "kind", "stage", "made from", "made (UTC)", "took", "numbers"), rows)
    for problem in problems:
        click.echo(f"unreadable: {problem}", err=True)


def _show_artifact(artifact: Artifact, as_json: bool) -> None:
    manifest = artifact.manifest
    try:
        ancestors = lineage(artifact)[:-1]
    except ArtifactError as error:
        click.echo(f"warning: {error}", err=True)
        ancestors = []
    if as_json:
        print_json(
            {
                "path": str(artifact.path),
                "digest": artifact.digest,
                "manifest": manifest.model_dump(mode="json"),
                "config": artifact.config(),
                "headline": headline(artifact),
                "lineage": [{"path": str(a.path), "kind": a.kind, "digest": a.digest} for a in ancestors],
            }
        )
        return
    facts = {
        "artifact": f"{artifact.path} ({manifest.kind}, verified)",
        "stage": manifest.stage,
        "made": f"{manifest.created:%Y-%m-%d %H:%M:%S} UTC in {duration(manifest.wall_seconds)} on {manifest.device}",
        "peak memory": f"{manifest.peak_memory_bytes / 2**20:,.0f} MiB",
        "seed": manifest.seed,
        "data": f"{manifest.data.name} ({manifest.data.fingerprint[:12]})" if manifest.data else None,
        "versions": ", ".join(f"{library} {version}" for library, version in manifest.versions.items()),
        "digest": artifact.digest[:12],
        "made from": " -> ".join(parent.name for parent in ancestors or manifest.parents) or None,
        "files": ", ".join(manifest.files),
        "thresholds by": _thresholds_by(artifact),
        **headline(artifact),
        **{f"  {setting}": value for setting, value in artifact.config().items()},
    }
    known = {label: value for label, value in facts.items() if value is not None}
    width = max(map(len, known))
    for label, value in known.items():
        click.echo(f"{label:<{width}}  {value}")


def _thresholds_by(artifact: Artifact) -> str | None:
    """What set and corrected the thresholds of a spiking network; of `auto`, what it chose."""
    if "model.json" not in artifact.manifest.files:
        return None
    description = json.loads(artifact.file("model.json").read_text(encoding="utf-8"))
    spiking = description.get("spiking") or {}
    return " + ".join([spiking["balance"], *spiking["corrections"]]) if spiking.get("balance") else None


@click.command("list")
@click.argument("registry", required=False)
def list_command(registry: str | None) -> None:
    """List the choices: networks, data sets, methods and so on.

    \b
    Example:
        hybridsnn list methods
    """
    if registry is None:
        for name in REGISTRIES:
            click.echo(f"hybridsnn list {name}")
        return
    if registry not in REGISTRIES:
        raise unknown("list", registry, list(REGISTRIES))
    module, attribute = REGISTRIES[registry]
    entries = getattr(importlib.import_module(module), attribute)
    width = max(map(len, entries))
    for name, entry in entries.items():
        training = f"; train-ann: {entry.training}" if registry == "datasets" else ""
        click.echo(f"{name:<{width}}  {entry.summary}{training}")
