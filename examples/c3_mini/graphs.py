"""The towers of a model as ONNX graphs whose weights stay in the weights file.

Each weight of a graph is an external tensor: a place in the safetensors file beside it, in float16,
converted to float32 when the graph is loaded. So all that a runtime needs beside the weights is a
graph of some 200 kB.
"""

from __future__ import annotations

import json
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from c3tools.encoders import Network
from c3tools.encoders.towers import ImageTower, TextTower, can_trim, plain_attention

WEIGHTS_FILE = "open_clip_model.safetensors"
_OPSET = 17
_LENGTH_FIELD = 8  # bytes at the start of a safetensors file: the length of its header
_INLINE = 64  # values that may be kept in the graph, as constants of its formulas are


def write_graphs(folder: Path, network: Network) -> None:
    """Write image.onnx and text.onnx beside the weights file of a network.

    Raises:
        ValueError: if a weight of a graph is not in the weights file as it is.
    """
    model = network.model
    height, width = network.preprocess.size
    tokens = torch.as_tensor(network.tokenizer(["a dog", "a red train in the snow"]))[:, :9]
    trims = can_trim(model, network.tokenizer)
    with plain_attention(model):
        _write(
            ImageTower(model, network.preprocess).eval(),
            torch.zeros((2, height, width, 3), dtype=torch.uint8),
            folder / "image.onnx",
            {0: "n"},
        )
        _write(
            TextTower(model, trims=trims).eval(),
            tokens,
            folder / "text.onnx",
            {0: "n", 1: "length"},
        )


class _Unit(nn.Module):
    """A tower whose features are normalised."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, batch: Tensor) -> Tensor:
        """Return unit vectors, float32 (n, d)."""
        return nn.functional.normalize(self.tower(batch).float(), dim=-1)


def _write(tower: nn.Module, example: Tensor, path: Path, sizes: dict[int, str]) -> None:
    with tempfile.TemporaryDirectory() as temporary, torch.no_grad(), warnings.catch_warnings():
        # the tracer warns of every size that it takes for a constant
        warnings.simplefilter("ignore")
        whole = Path(temporary) / path.name
        torch.onnx.export(
            _Unit(tower),
            (example,),
            str(whole),
            input_names=["batch"],
            output_names=["features"],
            dynamic_axes={"batch": sizes, "features": {0: "n"}},
            opset_version=_OPSET,
            # weights are left as they are in the file: no transposing, no convolution with its
            # batch norm folded in
            do_constant_folding=False,
            training=torch.onnx.TrainingMode.PRESERVE,
            dynamo=False,
        )
        graph = onnx.load(str(whole))
    stored = _places(path.with_name(WEIGHTS_FILE))
    casts = []
    for tensor in graph.graph.initializer:
        value = numpy_helper.to_array(tensor)
        content = value.astype(np.float16).tobytes()
        if value.size <= _INLINE and content not in stored:
            continue
        if content not in stored or not np.array_equal(value.astype(np.float16), value):
            raise ValueError(
                f"{tensor.name} {value.shape} of {path.name} is not in {WEIGHTS_FILE}."
            )
        half = f"{tensor.name}.half"
        casts.append(helper.make_node("Cast", [half], [tensor.name], to=TensorProto.FLOAT))
        tensor.CopyFrom(_external(half, value.shape, *stored[content]))
    nodes = [*casts, *graph.graph.node]
    del graph.graph.node[:]
    graph.graph.node.extend(nodes)
    path.write_bytes(graph.SerializeToString(deterministic=True))


def _places(weights: Path) -> dict[bytes, tuple[int, int]]:
    """Return the offset and length of each float16 tensor in the file, by its bytes."""
    content = weights.read_bytes()
    start = _LENGTH_FIELD + int.from_bytes(content[:_LENGTH_FIELD], "little")
    places = {}
    for name, entry in json.loads(content[_LENGTH_FIELD:start]).items():
        if name != "__metadata__" and entry["dtype"] == "F16":
            first, end = (start + offset for offset in entry["data_offsets"])
            places[content[first:end]] = first, end - first
    return places


def _external(name: str, shape: tuple[int, ...], offset: int, length: int) -> Any:
    tensor = TensorProto(
        name=name, data_type=TensorProto.FLOAT16, dims=shape, data_location=TensorProto.EXTERNAL
    )
    for key, value in (("location", WEIGHTS_FILE), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor
