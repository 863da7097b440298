"""Making an artifact: its key, a lock so that one process makes it, and an atomic rename once it is complete."""

import fcntl
import importlib.metadata
import os
import platform
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hybridsnn import __version__
from hybridsnn.artifacts.manifest import (
    MANIFEST,
    SCHEMA_VERSION,
    Artifact,
    DataMark,
    Kind,
    Manifest,
    check_name,
    files_in,
    sha256_of,
)
from hybridsnn.config import StageConfig, canonical, config_hash, hash_of


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


@dataclass
class Draft:
    """An unfinished artifact: a hidden folder beside its final place, removed unless committed.

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
        files = {name: sha256_of(self.path / name) for name in files_in(self.path)}
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
    """Write a file or folder through to disk, so that a power cut after the rename loses nothing."""
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
    """The folder for checkpoints of the stage that makes `key`; it survives a killed process."""
    return run_folder / f".resume-{key[:16]}"


def _unfinished(key: str) -> str:
    return f".tmp-{key[:16]}"


@contextmanager
def claim(run_folder: Path, key: str, waiting: Callable[[], None]) -> Iterator[None]:
    """Lock `key` in this run; another process that wants it calls `waiting` and waits here.

    The lock ends with the process, however that ends. Unfinished folders of a killed process are removed.
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
    """Whether an open file is still the one at `path`: its former owner may have removed it in the meantime."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
