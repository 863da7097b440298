"""Runs: folders of artifacts, what they hold, and which artifacts were made from which."""

import os
from collections.abc import Collection
from pathlib import Path

from hybridsnn.artifacts.manifest import MANIFEST, Artifact
from hybridsnn.errors import ArtifactError


def survey(run_folder: Path) -> tuple[list[Artifact], list[ArtifactError]]:
    """The artifacts of a run, oldest first, and the errors of the unreadable ones; files are not verified."""
    artifacts, problems = [], []
    folders = sorted(run_folder.iterdir()) if run_folder.is_dir() else []
    for folder in folders:
        if folder.name.startswith(".") or not (folder / MANIFEST).is_file():
            continue
        try:
            artifacts.append(Artifact.open(folder, verify=False))
        except ArtifactError as error:
            problems.append(error)
    return sorted(artifacts, key=lambda artifact: artifact.manifest.created), problems


def artifacts_in(run_folder: Path) -> list[Artifact]:
    """The readable artifacts of a run, oldest first; their files are not verified."""
    return survey(run_folder)[0]


def find(run_folder: Path, key: str) -> Artifact | None:
    """The newest artifact with this key, unverified."""
    return next((artifact for artifact in reversed(artifacts_in(run_folder)) if artifact.manifest.key == key), None)


def newest(run_folder: Path, kinds: Collection[str], exclude_stage: str | None = None) -> Artifact | None:
    """The newest artifact of these kinds that `exclude_stage` did not make, unverified.

    Raises:
        ArtifactError: if a manifest of the run is unreadable, since that one may be the newest.
    """
    artifacts, problems = survey(run_folder)
    if problems:
        raise problems[0]
    fitting = [a for a in artifacts if a.manifest.kind in kinds and a.manifest.stage != exclude_stage]
    return fitting[-1] if fitting else None


def lineage(artifact: Artifact) -> list[Artifact]:
    """The artifact and all it was made from, parents before children, each once; files are not verified.

    Raises:
        ArtifactError: if an ancestor is gone or is no longer what its child was made from.
    """
    found: dict[Path, Artifact] = {}

    def visit(current: Artifact) -> None:
        for parent in current.manifest.parents:
            ancestor = Artifact.open(Path(os.path.normpath(current.path.resolve() / parent.path)), verify=False)
            if ancestor.digest != parent.digest:
                raise ArtifactError(f"{ancestor.path}: is no longer what {current.path} was made from")
            visit(ancestor)
        found.setdefault(current.path.resolve(), current)

    visit(artifact)
    return list(found.values())
