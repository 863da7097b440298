"""Artifacts on disk: the manifest records how an artifact was made and the hash of each file."""

import hashlib
import json
import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NoReturn

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from hybridsnn import __version__
from hybridsnn.config import hash_of, yaml_mapping
from hybridsnn.errors import ArtifactError

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
CONFIG = "config.yaml"

Kind = Literal["ann", "snn", "evaluation", "report", "export"]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Parent(_Record):
    """What an artifact was made from; `path` is relative to the artifact's own folder, with forward slashes."""

    name: str
    path: str
    kind: Kind
    stage: str
    digest: str
    manifest_sha256: str


class DataMark(_Record):
    """The data set a stage used, and the fingerprint of its content."""

    name: str
    fingerprint: str


class Manifest(_Record):
    """The content of `manifest.json`; `files` maps relative names to sha256, times are in seconds, memory in bytes."""

    schema_version: int
    kind: Kind
    stage: str
    name: str
    key: str
    config_hash: str
    parents: list[Parent]
    files: dict[str, str]
    seed: int | None
    data: DataMark | None
    versions: dict[str, str]
    device: str
    created: AwareDatetime
    wall_seconds: float
    peak_memory_bytes: int


@dataclass(frozen=True)
class Artifact:
    """One artifact on disk."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: Path, kinds: Collection[str] | None = None, verify: bool = True) -> "Artifact":
        """Read an artifact.

        Args:
            path: its folder.
            kinds: the kinds that fit; None for any.
            verify: compare every file with its recorded hash.

        Raises:
            ArtifactError: if the folder or its manifest is missing or unreadable, the kind is another, or a file is
                missing, changed or not in the manifest.
        """
        artifact = cls(path, _read_manifest(path))
        if kinds is not None and artifact.manifest.kind not in kinds:
            wanted = " or ".join(kinds)
            raise ArtifactError(f"{path}: is of kind {artifact.manifest.kind}, wanted {wanted}; name another folder")
        if verify:
            artifact.verify()
        return artifact

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def kind(self) -> str:
        return self.manifest.kind

    @property
    def digest(self) -> str:
        """The sha256 of the content: equal for equal files, whenever and wherever they were made."""
        return hash_of({"kind": self.manifest.kind, "files": self.manifest.files})

    def config(self) -> dict[str, Any]:
        """The resolved settings of the stage that made this, as plain values."""
        return yaml_mapping(self.file(CONFIG).read_text(encoding="utf-8"), str(self.path / CONFIG))

    def file(self, name: str) -> Path:
        """The path of one of the files.

        Raises:
            ArtifactError: if the manifest names no such file.
        """
        if name not in self.manifest.files:
            raise ArtifactError(f"{self.path}: has no file '{name}'; it holds {', '.join(self.manifest.files)}")
        return self.path / name

    def verify(self) -> None:
        """Compare the files with the manifest.

        Raises:
            ArtifactError: naming the first file that is missing, changed or not in the manifest.
        """
        remedy = "restore it, or delete the artifact and repeat the command that made it"
        present = files_in(self.path)
        for name, expected in self.manifest.files.items():
            if name not in present:
                raise ArtifactError(f"{self.path}: the file '{name}' is missing; {remedy}")
            if sha256_of(self.path / name) != expected:
                raise ArtifactError(f"{self.path}: the file '{name}' is damaged (not the manifest's hash); {remedy}")
        extra = [name for name in present if name not in self.manifest.files and name != MANIFEST]
        if extra:
            raise ArtifactError(f"{self.path}: the file '{extra[0]}' is not in the manifest; move it elsewhere")

    def as_parent_of(self, folder: Path) -> Parent:
        """The entry for the manifest of an artifact in `folder`."""
        return Parent(
            name=self.manifest.name,
            path=Path(os.path.relpath(self.path.resolve(), folder.resolve())).as_posix(),
            kind=self.manifest.kind,
            stage=self.manifest.stage,
            digest=self.digest,
            manifest_sha256=sha256_of(self.path / MANIFEST),
        )


def _read_manifest(path: Path) -> Manifest:
    if not path.is_dir():
        _refuse_missing(path)
    file = path / MANIFEST
    if not file.is_file():
        raise ArtifactError(f"{path}: is not an artifact: it has no {MANIFEST}; name a folder that a stage made")
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
        version = raw["schema_version"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ArtifactError(f"{file}: unreadable: {' '.join(f'{type(error).__name__} {error}'.split())}") from None
    if not isinstance(version, int) or version > SCHEMA_VERSION:
        raise ArtifactError(
            f"{file}: schema version {version!r}; this hybridsnn reads up to {SCHEMA_VERSION}: upgrade it"
        )
    try:
        manifest = Manifest.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        problem = "unknown key" if first["type"] == "extra_forbidden" else first["msg"].lower()
        raise ArtifactError(f"{file}: {key}: {problem}; not a manifest of hybridsnn {__version__}") from None
    for name in manifest.files:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise ArtifactError(f"{file}: files: '{name}' lies outside of the artifact")
    return manifest


def _refuse_missing(path: Path) -> NoReturn:
    folders = sorted(file.parent.name for file in path.parent.glob(f"*/{MANIFEST}"))
    beside = ", ".join(name for name in folders if not name.startswith(".")) or "no artifacts"
    remedy = "make one with `hybridsnn train-ann`" if beside == "no artifacts" else "name one of those"
    raise ArtifactError(f"{path}: no such artifact; {path.parent} holds {beside}; {remedy}")


def files_in(folder: Path) -> list[str]:
    """All files below `folder`, as sorted relative names with forward slashes."""
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if not file.is_dir())


def sha256_of(file: Path) -> str:
    """The sha256 of a file's content."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write a plain value so that equal values give equal bytes."""
    path.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def check_name(name: str, what: str) -> None:
    """Refuse what cannot be the name of an artifact or a run.

    Raises:
        ArtifactError: starting with `what`.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", name):
        raise ArtifactError(
            f"{what}: got '{name}', must be letters, digits and . _ + -, beginning with one of the former"
        )
