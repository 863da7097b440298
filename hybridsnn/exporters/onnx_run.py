"""ONNX of a whole run over T steps."""

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from hybridsnn.exporters.base import Export, Source
from hybridsnn.exporters.onnx_common import (
    INPUT,
    OUTPUT,
    READOUT,
    Onnx,
    is_constant,
    numpy_type,
    parts,
    serialised,
    started_states,
    type_name,
    typed,
    walk,
)
from hybridsnn.program.graph import Node
from hybridsnn.program.operations import Role

if TYPE_CHECKING:
    pass


class OnnxRun(Onnx):
    """A graph from images, or frames over time, to the readout accumulated up to each of T steps."""

    summary: ClassVar[str] = "ONNX of a whole run over T steps: images, or frames, to the readout at each step"

    unroll: int = Field(8, ge=0, description="Up to so many steps are written out; more are a Scan.")

    def _files(self, source: Source) -> Export:
        _, arithmetic, _ = parts(source)
        constant = is_constant(source)
        shape = list(source.sample) if constant else [source.timesteps, "images", *source.sample]
        return Export(
            {"run.onnx": self._model(source, watched=False)},
            {
                "input": {"name": INPUT, "shape": shape, "type": type_name(arithmetic.frames), "constant": constant},
                "output": OUTPUT,
                "how": f"output is [{source.timesteps}, images, classes], the readout accumulated up to each step",
            },
        )

    def _watched(self, source: Source) -> bytes:
        return self._model(source, watched=True)

    def _model(self, source: Source, *, watched: bool) -> bytes:
        from onnx import helper

        from hybridsnn.exporters.onnx_graph import OnnxGraph

        outer, arithmetic, known = parts(source)
        program, constant = source.model.program, is_constant(source)
        static = program.static(program.inputs if constant else ())
        values: dict[Node, str] = {program.inputs[0]: INPUT} if constant else {}
        before = [node for node in program.nodes if node in static and node.role is not Role.INPUT]
        walk(source, outer, arithmetic, known, values, lambda node, current: current, before)
        after = [node for node in program.nodes if node not in static]
        classes = known[program.output.inputs[0]]
        states = started_states(source, outer, arithmetic, constant)

        def step(graph: OnnxGraph, frame: str, now: dict[str, str]) -> tuple[dict[str, str], dict[str, str]]:
            made, shown = dict(now), {}
            local = dict(values) if constant else {program.inputs[0]: frame}

            def fire(node: Node, current: str) -> str:
                state = f"membrane/{node.name}"
                spikes, made[state] = arithmetic.fire(graph, node, current, now[state], len(known[node]))
                shown[f"spikes/{node.name}"] = spikes
                return spikes

            current = walk(source, graph, arithmetic, known, local, fire, after)
            made[READOUT] = graph.add("Add", [now[READOUT], current], READOUT)
            return made, shown

        shown_names = [f"spikes/{node.name}" for node in program.neurons] if watched else []
        stacked: dict[str, str] = {}
        if source.timesteps <= self.unroll:
            steps: dict[str, list[str]] = {name: [] for name in (READOUT, *shown_names)}
            axes = outer.constant("first-axis", np.array([0], np.int64))
            for t in range(source.timesteps):
                outer.prefix = f"step-{t + 1}/"
                frame = INPUT
                if not constant:
                    place = outer.constant(f"step-{t + 1}", np.array(t, np.int64))
                    frame = outer.add("Gather", [INPUT, place], "frame", axis=0)
                states, shown = step(outer, frame, states)
                for name in steps:
                    value = states[READOUT] if name == READOUT else shown[name]
                    steps[name].append(outer.add("Unsqueeze", [value, axes], f"{name}/at"))
            outer.prefix = ""
            for name, each in steps.items():
                stacked[name] = outer.add("Concat", each, f"{name}/all", axis=0)
        else:
            body = OnnxGraph(outer.constants, prefix="each/")
            kinds = {f"membrane/{node.name}": (arithmetic.membrane(node), known[node]) for node in program.neurons}
            kinds[READOUT] = (arithmetic.currents, classes)
            incoming = {name: f"before/{name}" for name in kinds}
            made, shown = step(body, "frame", incoming)
            scanned = [READOUT, *shown_names]
            outs = [body.add("Identity", [made[name]], f"{name}/out") for name in kinds]
            rows = [body.add("Identity", [made[READOUT] if n == READOUT else shown[n]], f"{n}/row") for n in scanned]
            rows_of = {READOUT: kinds[READOUT]} | {
                f"spikes/{node.name}": (arithmetic.spikes, known[node]) for node in program.neurons
            }
            frame = (
                helper.make_tensor_value_info("frame", 1, [])
                if constant
                else typed("frame", arithmetic.frames, source.sample)
            )
            graph = helper.make_graph(
                body.nodes,
                "each-step",
                [typed(incoming[name], *kinds[name]) for name in kinds] + [frame],
                [typed(name, *kinds[key]) for name, key in zip(outs, kinds, strict=True)]
                + [typed(name, *rows_of[key]) for name, key in zip(rows, scanned, strict=True)],
            )
            over = outer.constant("steps", np.zeros(source.timesteps, np.float32)) if constant else INPUT
            results = [f"last/{name}" for name in kinds] + [f"{name}/all" for name in scanned]
            outer.nodes.append(
                helper.make_node(
                    "Scan",
                    [states[name] for name in kinds] + [over],
                    results,
                    name="time",
                    body=graph,
                    num_scan_inputs=1,
                )
            )
            stacked = {name: f"{name}/all" for name in scanned}
        outer.nodes.append(helper.make_node("Identity", [stacked[READOUT]], [OUTPUT], name=OUTPUT))
        outputs = [typed(OUTPUT, arithmetic.currents, classes, source.timesteps)]
        outputs += [
            typed(stacked[name], arithmetic.spikes, known[node], source.timesteps)
            for name, node in zip(shown_names, program.neurons, strict=False)
        ]
        leading = None if constant else source.timesteps
        return serialised(outer, "run", [typed(INPUT, arithmetic.frames, source.sample, leading)], outputs)

    def _run(self, source: Source, session: Any, frames: Tensor) -> tuple[dict[str, Tensor], np.ndarray]:
        _, arithmetic, _ = parts(source)
        fed = frames[0] if is_constant(source) else frames
        names = [output.name for output in session.get_outputs()]
        results = session.run(None, {INPUT: fed.contiguous().numpy().astype(numpy_type(arithmetic.frames))})
        made = dict(zip(names, results, strict=True))
        spikes = {
            node.name: torch.from_numpy(made[name])
            for node in source.model.program.neurons
            if (name := f"spikes/{node.name}/all") in made
        }
        return spikes, made[OUTPUT][-1]
