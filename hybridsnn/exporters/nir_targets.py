"""Runs a NIR file in simulators that read it: the file alone, and with what NIR cannot say set by hand."""

import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from graphlib import TopologicalSorter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hybridsnn.exporters.base import Source
from hybridsnn.exporters.comparison import Comparison, Verdict
from hybridsnn.model import IntegerModel

Spikes = dict[str, Tensor]  # of each layer by its name in the file, [T, B, *N]


def verdicts(
    source: Source, content: bytes, frames: Sequence[Tensor], names: Mapping[str, str], starts: Mapping[str, float]
) -> list[Verdict]:
    """What each simulator makes of a file.

    Args:
        content: the file.
        frames: batches `[T, B, ...]` of integers.
        names: of the layers of neurons, in the network to in the file.
        starts: of their membranes, by their name in the file.
    """
    found = []
    for target, (modules, run, patches) in TARGETS.items():
        if missing := [name for name in modules if find_spec(name) is None]:
            found.append(Verdict(target, "not run", note=f"{missing[0]} is not installed"))
            continue
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "network.nir"
            path.write_bytes(content)
            alone = _compare(target, source, frames, names, partial(run, path, names, None))
            if alone.verdict in ("exact", "not possible"):
                found.append(alone)
                continue
            patched = _compare(target, source, frames, names, partial(run, path, names, starts), patches)
            share = f"the file alone: {alone.differing:,} differ"
            found.append(
                patched
                if patched.verdict == "not possible"
                else Verdict(**{**patched.__dict__, "note": f"{patched.note}; {share}"})
            )
    if isinstance(source.model, IntegerModel) and find_spec("onnxruntime") and find_spec("onnx"):
        from hybridsnn.exporters.onnx_run import OnnxRun

        run_in_onnx = OnnxRun()
        found += run_in_onnx.check(source, run_in_onnx.export(source), frames, 0.0)
    return found


def _compare(
    target: str,
    source: Source,
    frames: Sequence[Tensor],
    names: Mapping[str, str],
    run: Callable[[Tensor], Spikes],
    patches: str = "",
) -> Verdict:
    comparison = Comparison(source.model)
    for batch in frames:
        try:
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")  # other packages' advice
                spikes = run(batch)
        except Exception as error:  # whatever an importer raises
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            return Verdict(target, "not possible", note=f"because {reason}")
        comparison.add(batch, {name: spikes[written] for name, written in names.items()})
    return comparison.verdict(target, patches=patches)


def _sinabs(path: Path, names: Mapping[str, str], starts: Mapping[str, float] | None, frames: Tensor) -> Spikes:
    import nir
    import sinabs.layers
    from sinabs.activation import SingleSpike
    from sinabs.nir import from_nir

    steps, batch = frames.shape[:2]
    graph = nir.read(path)
    network: Any = from_nir(graph, batch_size=batch)
    if starts is not None:  # which otherwise runs a sum as soon as the first summand is there
        places = {name: place for place, name in enumerate(_ordered(graph))}
        network.execution_order.sort(key=lambda node: places[node.name])
    spikes: Spikes = {}
    for name, module in _layers(network, names, sinabs.layers.IAFSqueeze):
        if starts is not None:
            module.spike_fn, module.min_v_mem = SingleSpike, None
        module.register_forward_hook(_sinabs_hook(spikes, name, steps, batch))
        if starts is not None:
            module.register_forward_pre_hook(_sinabs_start(starts[name], batch))
    network(frames.transpose(0, 1).flatten(0, 1))
    return spikes


def _ordered(graph: Any) -> list[str]:
    """The nodes of a graph, each after those that it reads."""
    reads: dict[str, set[str]] = {name: set() for name in graph.nodes}
    for source, target in graph.edges:
        reads[target].add(source)
    return list(TopologicalSorter(reads).static_order())


def _sinabs_hook(spikes: Spikes, name: str, steps: int, batch: int) -> Callable[..., None]:
    def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
        spikes[name] = output.unflatten(0, (batch, steps)).transpose(0, 1)

    return keep


def _sinabs_start(start: float, batch: int) -> Callable[..., None]:
    def begin(module: Any, inputs: tuple[Tensor, ...]) -> None:
        module.init_state_with_shape((batch, *inputs[0].shape[1:]))
        module.v_mem.fill_(start)

    return begin


def _spikingjelly(path: Path, names: Mapping[str, str], starts: Mapping[str, float] | None, frames: Tensor) -> Spikes:
    from spikingjelly.activation_based import neuron
    from spikingjelly.activation_based.nir_exchange import import_from_nir

    network = import_from_nir(path, dt=1.0)
    shown: dict[str, list[Tensor]] = {name: [] for name in names.values()}

    def keep(name: str) -> Callable[..., None]:
        return lambda module, inputs, output: shown[name].append(output[0] if isinstance(output, tuple) else output)

    for name, module in network.named_modules():
        written = name.split(".")[-1]
        if isinstance(module, neuron.IFNode) or written not in shown:
            continue
        module.register_forward_hook(keep(written))
        if starts is not None:
            node: Any = module.module
            node.v_reset = None
            node._memories["v"] = starts[written]
    state = None
    for frame in frames:
        _, state = network(frame, state)
    return {name: torch.stack(steps) for name, steps in shown.items()}


def _layers(network: nn.Module, names: Mapping[str, str], kind: type) -> list[tuple[str, Any]]:
    """The layers of neurons that an importer made, by their name in the file."""
    written = set(names.values())
    found = {}
    for name, module in network.named_modules():
        short = name.split(".")[-1]
        if isinstance(module, kind):
            with suppress(KeyError):
                found[short if short in written else name.replace(".", "_")] = module
    return list(found.items())


# By name: the modules it needs, what runs it, and what has to be set by hand after the import.
TARGETS: dict[str, tuple[tuple[str, ...], Callable[..., Spikes], str]] = {
    "sinabs": (
        ("sinabs", "nirtorch"),
        _sinabs,
        "spike_fn = SingleSpike, min_v_mem = None, v_mem = the initial potentials, nodes in topological order",
    ),
    "spikingjelly": (
        ("spikingjelly", "nirtorch"),
        _spikingjelly,
        "dt = 1, v_reset = None, v = the initial potentials",
    ),
}
