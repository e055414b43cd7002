"""Embed photos in Ray Data and close their modality gap.

    c3 embed images && c3 export --preset c2-collapse
    python embed_with_ray.py images c3-export rows

Takes half a minute on the bundled photos, most of it to start Ray. Writes rows/image/*.parquet with
the columns key and embedding.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import ray.data
from PIL import Image

from c3tools import Pipeline, load_encoder


class EmbedPhotos:
    """Embed batches of image files. Each worker loads the model and the pipeline once.

    Args:
        pipeline: the folder that `c3 export` or `Pipeline.save` wrote, on a disk that all workers
            see; or ``hf-hub:ORG/NAME``.
        model: the model that the pipeline was fitted for.
    """

    def __init__(self, pipeline: str, model: str = "c3-mini") -> None:
        self.encoder = load_encoder(model)
        self.pipeline = Pipeline.load(pipeline)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return key and embedding of a batch of files with their path and bytes."""
        images = [Image.open(io.BytesIO(file)) for file in batch["bytes"]]
        embeddings = self.encoder.encode_images(images)
        return {
            "key": np.array([Path(path).stem for path in batch["path"]]),
            "embedding": self.pipeline.transform(embeddings, modality="image"),
        }


def embed_photos(images: str, pipeline: str, output: str) -> None:
    """Write the embeddings of the images in a folder, which may be a URL, as Parquet."""
    files = ray.data.read_binary_files(images, include_paths=True, file_extensions=["jpg", "png"])
    rows = files.map_batches(
        EmbedPhotos,
        fn_constructor_args=[pipeline],
        batch_size=64,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=4),
    )
    rows.write_parquet(f"{output}/image")


if __name__ == "__main__":
    embed_photos(*sys.argv[1:4])
