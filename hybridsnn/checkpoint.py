"""Checkpoints: the state from which an unfinished stage resumes; one file with a checksum, replaced atomically."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hybridsnn.errors import ArtifactError

LAYOUT = "3"  # layouts 1 and 2 were of trainings only; 1 had neither this number nor a checksum
SAVE_EVERY = 120.0  # seconds between two checkpoints: the most that a killed process loses


def save_checkpoint(path: Path, values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Replace the checkpoint at `path`; a crash leaves the earlier file or the new one, never a part of either.

    Args:
        values: anything that JSON can hold.
    """
    kept = {name: tensor.detach().to("cpu").contiguous().clone() for name, tensor in tensors.items()}
    text = json.dumps(values)
    temporary = path.with_name(f"{path.name}.tmp")
    save_file(kept, temporary, metadata={"layout": LAYOUT, "words": text, "sha256": _digest(text, kept)})
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    temporary.replace(path)


def load_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """The values and the tensors, on the CPU; None if there is no such file.

    Raises:
        ArtifactError: if the file is damaged, or of another layout.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
        layout = metadata.get("layout", "1")
        if layout == LAYOUT and metadata["sha256"] != _digest(metadata["words"], tensors):
            raise ValueError("its checksum is not that of its content")
    except (SafetensorError, KeyError, ValueError) as error:
        raise ArtifactError(f"checkpoint: {path} is damaged ({error}); start over with --fresh") from None
    if layout != LAYOUT:
        raise ArtifactError(
            f"checkpoint: {path} has layout {layout}, this hybridsnn resumes from layout {LAYOUT}; "
            "start over with --fresh, or resume with the version that wrote it"
        )
    return json.loads(metadata["words"]), tensors


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    """The sha256 of all that a checkpoint holds."""
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
