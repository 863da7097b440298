"""Artifacts: folders written once and never changed, which say what made them."""

import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import secrets
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NoReturn

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from hybridsnn import __version__
from hybridsnn.config import StageConfig, canonical, config_hash, hash_of, yaml_mapping
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
    """Which data a stage saw, and the fingerprint of its content."""

    name: str
    fingerprint: str


class Manifest(_Record):
    """What `manifest.json` holds. `files` maps relative names to sha256; times are seconds, memory is bytes."""

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
        present = _files_in(self.path)
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
    beside = ", ".join(artifact.path.name for artifact in artifacts_in(path.parent)) or "no artifacts"
    remedy = "make one with `hybridsnn train-ann`" if beside == "no artifacts" else "name one of those"
    raise ArtifactError(f"{path}: no such artifact; {path.parent} holds {beside}; {remedy}")


def _files_in(folder: Path) -> list[str]:
    """All files below `folder`, as sorted relative names with forward slashes."""
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if not file.is_dir())


def sha256_of(file: Path) -> str:
    """The sha256 of a file's content."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write a plain value so that equal values give equal bytes."""
    path.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def key_of(
    stage: str, config: StageConfig, parents: Sequence[Artifact], outside: Mapping[str, str] | None = None
) -> str:
    """What identifies a result before it is made: the same key gives the same artifact.

    Args:
        stage: the stage's name.
        config: its settings; locations do not count.
        parents: what it reads, by content and in order.
        outside: hashes of what it reads besides, by name.
    """
    identity: dict[str, Any] = {
        "stage": stage,
        "config": canonical(config),
        "parents": [parent.digest for parent in parents],
        "version": __version__,
    }
    if outside:
        identity["outside"] = dict(outside)
    return hash_of(identity)


def check_name(name: str, what: str) -> None:
    """Refuse what cannot be the name of an artifact or a run.

    Raises:
        ArtifactError: starting with `what`.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", name):
        raise ArtifactError(
            f"{what}: got '{name}', must be letters, digits and . _ + -, beginning with one of the former"
        )


@dataclass
class Draft:
    """An artifact in the making: a hidden folder beside its final place, gone without trace unless committed.

    Use as a context manager; write files into `path`, then call `commit`.
    """

    run_folder: Path
    name: str
    key: str
    path: Path

    @classmethod
    def begin(cls, run_folder: Path, name: str, key: str) -> "Draft":
        """Make the hidden folder.

        Raises:
            ArtifactError: if `name` cannot be the name of a folder in the run.
        """
        check_name(name, "name")
        path = run_folder / f"{_unfinished(key)}-{os.getpid()}-{secrets.token_hex(4)}"
        path.mkdir(parents=True)
        return cls(run_folder, name, key, path)

    def __enter__(self) -> "Draft":
        return self

    def __exit__(self, *exception: object) -> None:
        shutil.rmtree(self.path, ignore_errors=True)

    def commit(
        self,
        *,
        kind: Kind,
        stage: str,
        config: StageConfig,
        parents: Sequence[Artifact],
        data: tuple[str, str] | None,
        device: str,
        wall_seconds: float,
        peak_memory_bytes: int,
    ) -> Artifact:
        """Hash the files, write the manifest and move the folder to its place: `name`, or `name-2`, ... if taken."""
        files = {name: sha256_of(self.path / name) for name in _files_in(self.path)}
        for name in files:
            _flush(self.path / name)
        for target in _free_names(self.run_folder, self.name):
            manifest = Manifest(
                schema_version=SCHEMA_VERSION,
                kind=kind,
                stage=stage,
                name=target.name,
                key=self.key,
                config_hash=config_hash(config),
                parents=[parent.as_parent_of(target) for parent in parents],
                files=files,
                seed=getattr(config, "seed", None),
                data=DataMark(name=data[0], fingerprint=data[1]) if data else None,
                versions=_versions(),
                device=device,
                created=datetime.now(UTC),
                wall_seconds=wall_seconds,
                peak_memory_bytes=peak_memory_bytes,
            )
            text = manifest.model_dump_json(indent=2) + "\n"
            (self.path / MANIFEST).write_text(text, encoding="utf-8")
            _flush(self.path / MANIFEST)
            _flush(self.path)
            try:
                self.path.rename(target)
            except OSError:
                if not target.exists():
                    raise
                continue  # another process took the name in this moment
            _flush(self.run_folder)
            return Artifact(target, manifest)
        raise AssertionError("there is always a free name")


def _free_names(folder: Path, name: str) -> Iterator[Path]:
    number = 1
    while True:
        target = folder / (name if number == 1 else f"{name}-{number}")
        if not os.path.lexists(target):
            yield target
        number += 1


def _flush(path: Path) -> None:
    """Have the disk hold a file or folder, so that a power cut after the rename loses nothing."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _versions() -> dict[str, str]:
    libraries = ("torch", "torchvision", "numpy", "numba", "lightning-fabric", "scikit-learn")
    versions = {"hybridsnn": __version__, "python": platform.python_version()}
    for library in libraries:
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def scratch_folder(run_folder: Path, key: str) -> Path:
    """Where the stage that makes `key` keeps what must survive a killed process."""
    return run_folder / f".resume-{key[:16]}"


def _unfinished(key: str) -> str:
    return f".tmp-{key[:16]}"


@contextmanager
def claim(run_folder: Path, key: str, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold the only right to make `key` in this run; whoever else wants it waits here, after a call of `waiting`.

    The right ends with the process, however it ends. What a killed owner left unfinished is cleared away.
    """
    run_folder.mkdir(parents=True, exist_ok=True)
    lock = run_folder / f".resume-{key[:16]}.lock"
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            if _is_at(lock, descriptor):
                for left in run_folder.glob(f"{_unfinished(key)}-*"):
                    shutil.rmtree(left, ignore_errors=True)
                try:
                    yield
                finally:
                    lock.unlink(missing_ok=True)
                return
        finally:
            os.close(descriptor)


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether an open file still is the one at `path`: a former owner may have removed it while this process waited."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


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
