"""The FAISS index that codes are made with: choosing its kind, and training it on a sample."""

from __future__ import annotations

import os
import re
import tempfile

import numpy as np

from ..errors import StoreError
from ..reporter import Reporter, counted
from ..seeds import generator
from .codes import CodeFormat, cell_count, has_codes, last_line, load_faiss, on_gpus
from .transformed_rows import TransformedRows

_FLAT_ROWS = 20_000
_SIZE_0 = re.compile(r"[A-Za-z]0+(?!\d)")  # such as IVF0, PQ0, RR0
_QUANTISED_ROWS = 2_000_000
_ROWS_PER_CELL = 64
_LEAST_ROWS_PER_CELL = 39  # below it, FAISS warns that its k-means has too few points
_LEAST_ROWS = 65_536
_MOST_BYTES = 512 * 2**20


def train_coder(
    source: TransformedRows, count: int, factory: str, seed: int, reporter: Reporter
) -> CodeFormat:
    """Return the format of a trained FAISS index; each warning of FAISS is reported once.

    Raises:
        StoreError: if FAISS cannot make it, or rows have no codes of their own in it.
    """
    faiss = load_faiss()
    dim = source.store.info.dim
    if _SIZE_0.search(factory):  # some of these would end this process
        raise StoreError(
            f"{factory!r} has a size of 0.", remedy="Use --factory auto, or a larger number."
        )
    try:
        index = faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
        if not has_codes(index):
            raise StoreError(
                f"A FAISS index {factory!r} cannot be stored row by row.",
                remedy="Use --factory auto, or Flat, SQ, PQ or RaBitQ, with or without IVF and "
                "OPQ.",
            )

        # Train it on a sample of the rows
        if not index.is_trained:
            most = _most_rows(dim)
            wanted = max(cell_count(index) * _ROWS_PER_CELL, _LEAST_ROWS)
            numbers = generator(seed, "index training").choice(
                count, size=min(count, wanted, most), replace=False
            )
            sample = source.sample(np.sort(numbers))

            # FAISS writes a line for each of hundreds of clusterings to the standard error
            with tempfile.TemporaryFile() as written:
                standard_error = os.dup(2)
                os.dup2(written.fileno(), 2)
                try:
                    # GPUs look for the cells of rows, which is most of the work
                    inverted = faiss.try_extract_index_ivf(index)
                    if inverted:
                        cells = faiss.IndexFlat(inverted.d, inverted.metric_type)
                        cells_on_gpus = on_gpus(cells)
                        if cells_on_gpus is not cells:
                            inverted.clustering_index = cells_on_gpus
                    index.train(sample)
                finally:
                    os.dup2(standard_error, 2)
                    os.close(standard_error)
                written.seek(0)
                for line in dict.fromkeys(written.read().decode(errors="replace").splitlines()):
                    reporter.message(f"FAISS: {line}")
        return CodeFormat(faiss.serialize_index(index).tobytes())
    except RuntimeError as error:
        raise StoreError(
            f"FAISS cannot make the index {factory!r} from {counted(count, 'row')} of {dim} "
            f"dimensions "
            f"({last_line(error)}).",
            remedy="Use --factory auto, Flat, or fewer cells.",
        ) from error


def _most_rows(dim: int) -> int:
    """Return how many rows of so many dimensions a FAISS index is trained on at the most."""
    return _MOST_BYTES // (4 * dim)


def choose_factory(n: int, dim: int) -> str:
    """Return the index string for ``n`` vectors of ``dim`` dimensions.

    It is exact up to 20,000 rows, has inverted lists of float16 vectors up to 2 million, and beyond
    that product quantisation after a rotation.
    """
    if n <= _FLAT_ROWS:
        return "Flat"
    cells = 1 << round(np.log2(4 * np.sqrt(n)))
    while cells * _LEAST_ROWS_PER_CELL > min(n, _most_rows(dim)):
        cells //= 2
    if n <= _QUANTISED_ROWS:
        return f"IVF{cells},SQfp16"
    pieces = next((m for m in (64, 32, 16, 8, 4) if m * 4 <= dim), 1)
    return f"OPQ{pieces}_{pieces * 4},IVF{cells},PQ{pieces}"
