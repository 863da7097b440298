"""ONNX of one time step with its states."""

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from hybridsnn.exporters.base import Export, Source
from hybridsnn.exporters.onnx_common import (
    INPUT,
    OUTPUT,
    READOUT,
    Onnx,
    initial_states,
    numpy_type,
    parts,
    serialised,
    type_name,
    typed,
    walk,
)
from hybridsnn.program.graph import Node

if TYPE_CHECKING:
    pass


class OnnxStep(Onnx):
    """A graph `(input, states) -> (output, states)` for one time step."""

    summary: ClassVar[str] = "ONNX of one time step: (input, states) to (output, states)"

    def _files(self, source: Source) -> Export:
        _, arithmetic, _ = parts(source)
        initial = initial_states(source, arithmetic)
        states = {name: list(values.shape[1:]) for name, values in initial.items()}
        from safetensors.numpy import save

        return Export(
            {"step.onnx": self._model(source, watched=False), "initial-states.safetensors": save(initial)},
            {
                "input": {"name": INPUT, "shape": list(source.sample), "type": type_name(arithmetic.frames)},
                "states": states,
                "output": OUTPUT,
                "next": {name: f"next/{name}" for name in states},
                "how": "repeat initial-states.safetensors over the batch; at each step feed a frame and the states, "
                "and go on with the states next/NAME; output is the readout accumulated so far",
            },
        )

    def _watched(self, source: Source) -> bytes:
        return self._model(source, watched=True)

    def _model(self, source: Source, *, watched: bool) -> bytes:
        from onnx import helper

        graph, arithmetic, known = parts(source)
        values = {source.model.program.inputs[0]: INPUT}
        nexts: dict[str, str] = {}
        shown: list[str] = []

        def fire(node: Node, current: str) -> str:
            state = f"membrane/{node.name}"
            spikes, after = arithmetic.fire(graph, node, current, state, len(known[node]))
            nexts[state] = after
            shown.append(spikes)
            return spikes

        graph.prefix = "next/"
        current = walk(source, graph, arithmetic, known, values, fire, source.model.program.nodes)
        nexts[READOUT] = graph.add("Add", [READOUT, current], READOUT)
        graph.nodes.append(helper.make_node("Identity", [nexts[READOUT]], [OUTPUT], name=OUTPUT))
        for state, made in nexts.items():
            if made != f"next/{state}":
                graph.nodes.append(helper.make_node("Identity", [made], [f"next/{state}"], name=f"{state}/next"))
        classes = known[source.model.program.output.inputs[0]]
        types = {
            f"membrane/{node.name}": (arithmetic.membrane(node), known[node]) for node in source.model.program.neurons
        }
        types[READOUT] = (arithmetic.currents, classes)
        inputs = [typed(INPUT, arithmetic.frames, source.sample)]
        inputs += [typed(name, kind, shape) for name, (kind, shape) in types.items()]
        outputs = [typed(OUTPUT, arithmetic.currents, classes)]
        outputs += [typed(f"next/{name}", kind, shape) for name, (kind, shape) in types.items()]
        if watched:
            outputs += [
                typed(name, arithmetic.spikes, known[node])
                for name, node in zip(shown, source.model.program.neurons, strict=True)
            ]
        return serialised(graph, "step", inputs, outputs)

    def _run(self, source: Source, session: Any, frames: Tensor) -> tuple[dict[str, Tensor], np.ndarray]:
        _, arithmetic, _ = parts(source)
        states = {
            name: np.repeat(values, frames.shape[1], 0) for name, values in initial_states(source, arithmetic).items()
        }
        names = [output.name for output in session.get_outputs()]
        spikes: dict[str, list[Tensor]] = {}
        output = np.zeros(0)
        for frame in frames:
            fed = {INPUT: frame.numpy().astype(numpy_type(arithmetic.frames)), **states}
            made = dict(zip(names, session.run(None, fed), strict=True))
            states = {name: made[f"next/{name}"] for name in states}
            output = made[OUTPUT]
            for node in source.model.program.neurons:
                if (shown := made.get(f"next/spikes/{node.name}")) is not None:
                    spikes.setdefault(node.name, []).append(torch.from_numpy(shown))
        return {name: torch.stack(steps) for name, steps in spikes.items()}, output
