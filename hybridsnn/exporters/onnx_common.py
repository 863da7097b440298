"""What both ONNX forms share: their check, and the parts of a graph."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from hybridsnn.encoders import ENCODERS
from hybridsnn.errors import ConversionError
from hybridsnn.exporters.base import Export, Exporter, Source
from hybridsnn.exporters.comparison import Comparison, Verdict
from hybridsnn.model import IntegerModel
from hybridsnn.program.graph import Node
from hybridsnn.program.passes import shapes

if TYPE_CHECKING:
    from hybridsnn.exporters.onnx_graph import Float, OnnxGraph

INPUT, READOUT, OUTPUT = "input", "readout", "output"


class Onnx(Exporter):
    """What both forms share: one step of the network, state in and state out."""

    needs: ClassVar[tuple[str, ...]] = ("onnx", "onnxruntime")
    extra: ClassVar[str] = "onnx"
    must_agree: ClassVar[tuple[str, ...]] = ("onnxruntime",)

    def export(self, source: Source) -> Export:
        """See `Exporter`."""
        from hybridsnn.exporters.onnx_graph import refusals

        if found := refusals(source):
            raise ConversionError(f"export: ONNX has no counterpart of {', '.join(found)}")
        if source.model.readout_leak != 1:
            raise ConversionError("export: the readout leaks, which is not exported; convert with --readout-leak 1")
        return self._files(source)

    def _files(self, source: Source) -> Export:
        raise NotImplementedError

    def check(self, source: Source, export: Export, frames: Sequence[Tensor], tolerance: float) -> list[Verdict]:
        """See `Exporter`: onnxruntime, on the graph with spikes as outputs too, and on the file as it is."""
        comparison = Comparison(source.model)
        file = session_of(next(content for name, content in export.files.items() if name.endswith(".onnx")))
        watched = session_of(self._watched(source))
        for batch in frames:
            found, readout = self._run(source, watched, batch)
            _, plain = self._run(source, file, batch)
            if not np.array_equal(readout, plain):
                raise ConversionError("export: onnxruntime gives another readout when it shows the spikes as well")
            comparison.add(batch, found, torch.from_numpy(readout))
        return [comparison.verdict("onnxruntime", tolerance=tolerance)]

    def _watched(self, source: Source) -> bytes:
        """The file with the spikes of each layer as outputs."""
        raise NotImplementedError

    def _run(self, source: Source, session: Any, frames: Tensor) -> tuple[dict[str, Tensor], np.ndarray]:
        """Spikes `[T, B, *N]` of each layer, if the session shows them, and the readout after the last step."""
        raise NotImplementedError


def parts(source: Source) -> "tuple[OnnxGraph, Float, dict[Node, tuple[int, ...]]]":
    from hybridsnn.exporters.onnx_graph import Float, OnnxGraph, Whole

    model = source.model
    whole = isinstance(model, IntegerModel) and model.bits <= 8
    arithmetic = Whole(source) if whole else Float(source)
    return OnnxGraph(), arithmetic, shapes(source.model.program, source.sample)


def is_constant(source: Source) -> bool:
    """Whether the frames are the same at every step."""
    coding = ENCODERS[source.model.encoder.name]
    return not (coding.random or coding.events)


def walk(
    source: Source,
    graph: "OnnxGraph",
    arithmetic: "Float",
    known: dict[Node, tuple[int, ...]],
    values: dict[Node, str],
    fire: Any,
    nodes: Sequence[Node],
) -> str:
    """Add all of these nodes; returns what flows into the readout, if it is among them."""
    from hybridsnn.exporters.onnx_graph import emit

    for node in nodes:
        if node not in values:
            emit(graph, arithmetic, node, values, known, fire)
    output = source.model.program.output
    current = values.get(output, "")
    return current


def initial_states(source: Source, arithmetic: "Float") -> dict[str, np.ndarray]:
    """The states before the first step, for one image."""
    known = shapes(source.model.program, source.sample)
    found = {}
    for node in source.model.program.neurons:
        module: Any = node.module
        start = module.initial_state(torch.zeros(1, 1, *known[node])).membrane
        found[f"membrane/{node.name}"] = start.detach().numpy().astype(numpy_type(arithmetic.membrane(node)))
    classes = known[source.model.program.output.inputs[0]]
    return found | {READOUT: np.zeros((1, *classes), numpy_type(arithmetic.currents))}


def started_states(source: Source, graph: "OnnxGraph", arithmetic: "Float", constant: bool) -> dict[str, str]:
    """Those states in a graph, for as many images as its input has."""
    axis = 0 if constant else 1
    count = graph.add("Shape", [INPUT], "images", start=axis, end=axis + 1)
    found = {}
    for name, values in initial_states(source, arithmetic).items():
        rest = graph.constant(f"{name}/shape", np.array(values.shape[1:], np.int64))
        shape = graph.add("Concat", [count, rest], f"{name}/sizes", axis=0)
        start = graph.constant(f"{name}/initial", np.ascontiguousarray(values))
        found[name] = graph.add("Expand", [start, shape], f"{name}/start")
    return found


def typed(name: str, kind: int, shape: Sequence[int], leading: int | None = None) -> Any:
    from onnx import helper

    return helper.make_tensor_value_info(name, kind, ([] if leading is None else [leading]) + ["images", *shape])


def serialised(graph: "OnnxGraph", name: str, inputs: list[Any], outputs: list[Any]) -> bytes:
    import onnx
    from onnx import helper

    from hybridsnn import __version__
    from hybridsnn.exporters.onnx_graph import OPSET

    made = helper.make_graph(graph.nodes, name, inputs, outputs, list(graph.constants.values()))
    model = helper.make_model(
        made,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=8,
        producer_name="hybridsnn",
        producer_version=__version__,
    )
    onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString()
    return content


def session_of(content: bytes) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def numpy_type(kind: int) -> Any:
    from onnx import helper

    return helper.tensor_dtype_to_np_dtype(kind)


def type_name(kind: int) -> str:
    return str(np.dtype(numpy_type(kind)))
