"""Embed photos in Daft and close their modality gap.

    pip install ".[models]" daft
    c3 embed images && c3 export --preset c2-collapse
    python embed_with_daft.py images c3-export rows

Takes some ten seconds on the bundled photos. Writes rows/image/*.parquet with the columns key and
embedding.
"""

from __future__ import annotations

import io
import sys

import daft
import numpy as np
from daft import DataType, Series, col
from daft.functions import regexp_extract
from PIL import Image

from c3tools import Pipeline, load_encoder


@daft.cls
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

    @daft.method.batch(  # type: ignore[untyped-decorator]
        return_dtype=DataType.embedding(DataType.float32(), 256), batch_size=64
    )
    def __call__(self, files: Series) -> np.ndarray:
        """Return the embeddings, float32 (n, 256), of n files, from their bytes."""
        images = [Image.open(io.BytesIO(file)) for file in files.to_pylist()]
        embeddings = self.encoder.encode_images(images)
        return self.pipeline.transform(embeddings, modality="image")


def embed_photos(images: str, pipeline: str, output: str) -> None:
    """Write the embeddings of the images in a folder, which may be a URL, as Parquet."""
    files = daft.from_glob_path(f"{images}/*.jpg")
    embedding = EmbedPhotos(pipeline)(col("path").download())
    key = regexp_extract(col("path"), r"([^/]+)\.jpg$", 1)
    rows = files.select(key.alias("key"), embedding.alias("embedding"))
    rows.write_parquet(f"{output}/image", write_mode="overwrite")


if __name__ == "__main__":
    embed_photos(*sys.argv[1:4])
