"""Write encoder.json, image.onnx and text.onnx, with which c3tools runs the bundled model without
torch.

    python describe.py c3-mini            # a folder that make.py wrote
    python describe.py ../../c3tools/assets/c3-mini

Takes seconds, and needs the package onnx. `make.py` runs it too. The files must be written again
whenever the weights change; c3tools ignores files that do not belong to the weights.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from graphs import WEIGHTS_FILE, write_graphs

from c3tools.encoders import DEFAULT_MODEL, load_network
from c3tools.io.files import sha256_of, write_json_atomically


def write_description(folder: Path) -> None:
    """Load the model in a folder by open_clip; note what an encoder needs to know of it, and write
    its graphs.
    """
    network = load_network(f"local-dir:{folder}")
    described = network.describe()
    write_graphs(folder, network)
    content = {
        "sha256": {
            name: sha256_of(folder / name) for name in (WEIGHTS_FILE, "image.onnx", "text.onnx")
        },
        "identity": {**described.identity, "name": DEFAULT_MODEL, "architecture": DEFAULT_MODEL},
        "preprocessing": network.preprocess.config,
        "trims_texts": described.trims_texts,
        "end_token": described.end_token,
        "dim": json.loads((folder / "open_clip_config.json").read_text(encoding="utf-8"))[
            "model_cfg"
        ]["embed_dim"],
    }
    write_json_atomically(folder / "encoder.json", content)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    write_description(parser.parse_args().folder)
