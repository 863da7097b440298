"""Exporters: a spiking network as files that other tools run, each checked against the network spike for spike."""

from hybridsnn.exporters.base import Export, Exporter, Source
from hybridsnn.exporters.nir_format import Nir
from hybridsnn.exporters.onnx_run import OnnxRun
from hybridsnn.exporters.onnx_step import OnnxStep

EXPORTERS: dict[str, type[Exporter]] = {"onnx-step": OnnxStep, "onnx": OnnxRun, "nir": Nir}

__all__ = ["EXPORTERS", "Export", "Exporter", "Nir", "OnnxRun", "OnnxStep", "Source"]
