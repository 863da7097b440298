"""Work half done, in one safetensors file that replaces its forerunner atomically and knows when it is damaged."""

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

LAYOUT = "3"  # 1 and 2 were of trainings only; 1, which did not say so, had no checksum
SAVE_EVERY = 120.0  # seconds between two: the most that a killed process loses


def save_snapshot(path: Path, words: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write; a crash leaves the earlier file or the new one, never half of either.

    Args:
        words: whatever JSON holds.
    """
    kept = {name: tensor.detach().to("cpu").contiguous().clone() for name, tensor in tensors.items()}
    text = json.dumps(words)
    temporary = path.with_name(f"{path.name}.tmp")
    save_file(kept, temporary, metadata={"layout": LAYOUT, "words": text, "sha256": _digest(text, kept)})
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    temporary.replace(path)


def load_snapshot(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """The words and the tensors, on the CPU; None if there is no such file.

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
            f"checkpoint: {path} has layout {layout}, this hybridsnn goes on from layout {LAYOUT}; "
            "start over with --fresh, or go on with the version that wrote it"
        )
    return json.loads(metadata["words"]), tensors


def _digest(words: str, tensors: Mapping[str, Tensor]) -> str:
    """The sha256 of all that a file holds."""
    digest = hashlib.sha256(words.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
