"""A captured graph in few words: every way to write an operation becomes one, and works on each sample alone."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, fx, nn

from hybridsnn.conversion import form_of_layers as layers
from hybridsnn.conversion import form_of_values as values
from hybridsnn.conversion.capture import IMAGES, Captured, same_memory
from hybridsnn.conversion.form import NormalForm, keep, keep_function, refuse
from hybridsnn.conversion.refusals import MIXES, Refusals, name_of
from hybridsnn.program.operations import DROPOUTS, MAX_POOLS, MODULES, RELUS, module_of

Handler = Callable[[NormalForm, Any], Any]

MODULE_HANDLERS: dict[type[nn.Module], Handler] = {
    **dict.fromkeys(RELUS, layers.relu_module),
    **dict.fromkeys(DROPOUTS, layers.dropout_module),
    **dict.fromkeys((nn.Flatten, nn.Unflatten), values.reshape_module),
    **dict.fromkeys(MAX_POOLS, layers.max_pool_module),
    nn.Identity: values.same,
}
ATTRIBUTES: dict[str, Handler] = {"mT": values.last_two, "data": values.same}
HANDLERS: dict[str, Handler] = {
    **dict.fromkeys(("relu", "relu_"), layers.relu),
    **dict.fromkeys(("relu6", "relu6_"), layers.relu6),
    **dict.fromkeys(("clamp", "clamp_", "clip", "clip_", "hardtanh", "hardtanh_"), layers.clamp),
    **dict.fromkeys(("clamp_min", "clamp_min_"), layers.clamp_min),
    **dict.fromkeys(("dropout", "dropout_", "dropout1d", "dropout2d", "dropout3d", "feature_dropout"), layers.dropout),
    "linear": layers.linear,
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), layers.convolution),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), layers.convolution),
    "batch_norm": layers.batch_norm,
    **dict.fromkeys(("add", "add_", "iadd"), values.add),
    **dict.fromkeys(("sub", "sub_", "isub", "subtract"), values.subtract),
    **dict.fromkeys(("mul", "mul_", "imul", "multiply"), values.multiply),
    **dict.fromkeys(("div", "div_", "truediv", "itruediv", "divide"), values.divide),
    **dict.fromkeys(("neg", "neg_", "negative"), values.negate),
    **dict.fromkeys(("flatten", "view", "reshape", "squeeze", "squeeze_", "unsqueeze", "unsqueeze_", "unflatten",
                     "view_as", "reshape_as"), values.reshape),
    **dict.fromkeys(("contiguous", "clone", "detach", "to", "float", "double", "type_as", "expand", "expand_as",
                     "alias"), values.same),
    **dict.fromkeys(("permute", "permute_copy"), values.permute),
    **dict.fromkeys(("transpose", "transpose_", "swapaxes", "swapdims"), values.transpose),
    "getitem": values.pick,
    **dict.fromkeys(("chunk", "split", "tensor_split"), values.parts),
    **dict.fromkeys(("cat", "concat", "concatenate"), values.concatenate),
    "stack": values.stack,
    "pad": values.pad,
    "flip": values.flip,
    **dict.fromkeys(("mean", "sum"), layers.mean),
    **dict.fromkeys(("avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d",
                     "adaptive_avg_pool3d", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "interpolate"),
                    keep_function),
    **dict.fromkeys(("max_pool1d", "max_pool2d", "max_pool3d"), layers.max_pool),
}  # fmt: skip


def normalise(captured: Captured, refusals: Refusals) -> fx.GraphModule:
    """Write a captured graph in the operations that the rest of the conversion knows; notes what has no such form.

    Functional layers become modules; a module that is called several times becomes several with equal weights, since
    each call needs thresholds of its own; weights that several modules share become several too. What is computed from
    constants alone becomes a constant.
    """
    form = NormalForm(captured, refusals)
    for node in captured.body.graph.nodes:
        _write(form, node)
    captured.body.graph = form.graph
    _untie(captured.body)
    return captured.body


def _write(form: NormalForm, node: Any) -> None:
    """Write one node."""
    if node.op == "placeholder":
        form.written[node] = form.graph.placeholder("images")
    elif node.op == "output":
        answer = form.of(node.args[0])
        if isinstance(answer, fx.Node):
            form.graph.output(answer)
        else:
            form.refusals.add("output", "constant", "the answer does not depend on the images")
            form.graph.output(next(iter(form.graph.nodes)))
    elif not any(_is_written(form.written[source]) for source in node.all_input_nodes):
        form.written[node] = form.values[node]
    else:
        form.written[node] = _operation(form, node)


def _operation(form: NormalForm, node: Any) -> Any:
    """What an operation is in the new graph."""
    sources = [source for source in node.all_input_nodes if _is_written(form.written[source])]
    value = form.values[node]
    if isinstance(value, Tensor) and (value.dim() == 0 or len(value) != IMAGES):
        return form.refuse(node, MIXES)
    module, (_, label) = module_of(form.body, node), name_of(form.body, node)
    if module is not None and type(module) in MODULES:
        handler = MODULE_HANDLERS.get(type(module), keep)
    elif module is None and node.target is getattr:
        handler = ATTRIBUTES.get(node.args[1], refuse)
    else:
        known = module is None and _is_of_torch(node)
        handler = HANDLERS.get(label, refuse) if known else refuse
    if handler is refuse and len(sources) == 1 and node not in form.changing and isinstance(value, Tensor):
        given = form.values[sources[0]]
        if isinstance(given, Tensor) and same_memory(given, value):
            return form.of(sources[0])  # such as a dropout of whole blocks, in evaluation
    return handler(form, node)


def _is_written(value: Any) -> bool:
    """Whether something depends on the images: a node, or several, and no constant."""
    return isinstance(value, fx.Node) or (isinstance(value, tuple) and any(map(_is_written, value)))


def _is_of_torch(node: fx.Node) -> bool:
    """Whether a function or method is one of PyTorch or Python, and no other of the same name."""
    module = getattr(node.target, "__module__", None)
    return node.op == "call_method" or module is None or module.partition(".")[0] in ("torch", "_operator")


def _untie(body: nn.Module) -> None:
    """Give each module weights of its own: each is rescaled for its own place."""
    seen: set[int] = set()
    for module in body.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if id(parameter) in seen:
                setattr(module, name, nn.Parameter(parameter.detach().clone(), parameter.requires_grad))
            seen.add(id(parameter))
