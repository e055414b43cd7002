"""Search an index of clip-retrieval by its own service, without loading a model.

    c3 export --format clip-retrieval --preset c1 --role inference -o exported
    clip-retrieval index --embeddings_folder exported --index_folder index
    python clip_retrieval_search.py index queries.npy

Prints the keys of the ten nearest images of each query, a vector (d,) of the same model, as a line
of JSON. clip-retrieval needs numpy below 2, so an environment of its own: pip install
clip-retrieval==2.45 "setuptools<70".
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from clip_retrieval.clip_back import (
    ClipResource,
    KnnService,
    ParquetMetadataProvider,
    load_index,
)


def service(index: Path) -> Any:
    """Return the service of an index, with the files that are needed for vectors alone."""
    resource = dict.fromkeys(ClipResource.__dataclass_fields__)
    resource |= {
        "metadata_provider": ParquetMetadataProvider(str(index / "metadata")),
        "image_index": load_index(str(index / "image.index"), False),
        "columns_to_return": ["key", "caption", "url"],
        "metadata_is_ordered_by_ivf": False,
    }
    return KnnService(clip_resources={"index": ClipResource(**resource)})


if __name__ == "__main__":
    knn = service(Path(sys.argv[1]))
    for query in np.load(sys.argv[2]):
        hits = knn.query(
            embedding_input=query.tolist(), num_images=10, num_result_ids=10, deduplicate=False
        )
        print(json.dumps([hit["key"] for hit in hits]))
