"""Artifacts: folders that are written once, never changed, and record how they were made."""

from hybridsnn.artifacts.draft import Draft, claim, key_of, scratch_folder
from hybridsnn.artifacts.manifest import (
    CONFIG,
    MANIFEST,
    SCHEMA_VERSION,
    Artifact,
    Kind,
    Manifest,
    check_name,
    sha256_of,
    write_json,
)
from hybridsnn.artifacts.runs import artifacts_in, find, lineage, newest, survey

__all__ = [
    "CONFIG",
    "MANIFEST",
    "SCHEMA_VERSION",
    "Artifact",
    "Draft",
    "Kind",
    "Manifest",
    "artifacts_in",
    "check_name",
    "claim",
    "find",
    "key_of",
    "lineage",
    "newest",
    "scratch_folder",
    "sha256_of",
    "survey",
    "write_json",
]
