"""FAISS codes of rows: the format of an index, and opening codes for a search.

An index is an export whose rows have a code in place of the embedding: the bytes that FAISS keeps
for a vector (`sa_encode`). The trained FAISS index, without any row, lies beside them in
`trained.faiss`; once the codes are added to it (`add_sa_codes`), it finds what an index finds that
the vectors were added to.
"""

from __future__ import annotations

import re
from functools import cached_property
from hashlib import sha256
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ..arrays import Mask, Matrix
from ..errors import StoreError, optional_module
from ..export.formats import ParquetFormat
from ..reporter import SILENT, Reporter
from ..store import Store
from ..store.rows import one_array
from ..store.shards import CODE_FORMAT

Codes = npt.NDArray[np.uint8]
TRAINED_FILE = "trained.faiss"
HIT_COLUMNS = ("key", "caption", "path", "image_key", "pair_key", "sha256", "split")


def load_faiss() -> Any:
    """Return the module faiss."""
    return optional_module("faiss", "faiss-cpu", extra="faiss", purpose="Indexing and searching")


def last_line(error: Exception) -> str:
    """Return what an error of FAISS says, without the place in its source."""
    return re.sub(
        r"^(Error in .* at \S+:\d+: )?(Error: '.*' failed: )?",
        "",
        str(error).strip().splitlines()[-1],
    )


class CodeFormat(ParquetFormat):
    """Shards whose rows have FAISS codes.

    Args:
        content: the trained FAISS index without rows, as FAISS writes it to a file.
    """

    name = CODE_FORMAT
    columns = HIT_COLUMNS

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.digest = sha256(content).hexdigest()

    def __getstate__(self) -> dict[str, Any]:
        """Return what a worker makes the format of."""
        return {"content": self.content, "digest": self.digest}

    @cached_property
    def trained(self) -> Any:
        """The trained FAISS index, without rows.

        Raises:
            StoreError: if FAISS cannot read it.
        """
        try:
            return load_faiss().deserialize_index(np.frombuffer(self.content, np.uint8))
        except RuntimeError as error:
            raise StoreError(
                f"FAISS cannot read {TRAINED_FILE} of the index ({last_line(error)}). It is "
                f"damaged, or was written by another version of FAISS.",
                remedy="Rebuild the index: c3 index --rebuild",
            ) from error

    def encode(self, rows: Matrix) -> Codes:
        """Return the codes of rows (n, d): uint8 (n, bytes of a code)."""
        codes: Codes = self.trained.sa_encode(np.ascontiguousarray(rows, dtype=np.float32))
        return codes


def has_codes(index: Any) -> bool:
    """Return whether FAISS can take the rows of an index apart, each as a code of its own."""
    faiss = load_faiss()
    inner = _behind_rotations(index)
    if isinstance(inner, faiss.IndexIVFFastScan):
        return False
    return isinstance(inner, (faiss.IndexFlatCodes, faiss.IndexIVF))


def add_codes(index: Any, codes: Codes) -> None:
    """Add rows to a FAISS index, given their codes: uint8 (n, bytes of a code)."""
    inner = _behind_rotations(index)
    inner.add_sa_codes(np.ascontiguousarray(codes))
    index.ntotal = inner.ntotal


def _behind_rotations(index: Any) -> Any:
    """Return the FAISS index behind the rotations that rows go through first."""
    faiss = load_faiss()
    index = faiss.downcast_index(index)
    while isinstance(index, faiss.IndexPreTransform):
        index = faiss.downcast_index(index.index)
    return index


def cell_count(index: Any) -> int:
    """Return the number of inverted lists of a FAISS index, 0 if it has none."""
    inverted = load_faiss().try_extract_index_ivf(index)
    return int(inverted.nlist) if inverted else 0


def has_whole_vectors(index: Any) -> bool:
    """Return whether a FAISS index with inverted lists keeps the vectors themselves (Flat)."""
    return isinstance(_behind_rotations(index), load_faiss().IndexIVFFlat)


def set_nprobe(index: Any, nprobe: int | None) -> None:
    """Let a FAISS index, on the CPU or on GPUs, visit so many inverted lists; None if it has
    none.
    """
    if nprobe:
        faiss = load_faiss()
        parameters = getattr(faiss, "GpuParameterSpace", faiss.ParameterSpace)()
        parameters.set_index_parameter(index, "nprobe", nprobe)
        # A graph of cells finds no more of them than its search remembers
        inverted = faiss.try_extract_index_ivf(index)
        quantizer = faiss.downcast_index(inverted.quantizer) if inverted else None
        if isinstance(quantizer, faiss.IndexHNSW):
            quantizer.hnsw.efSearch = max(16, nprobe)


def search_parameters(index: Any, nprobe: int, is_allowed: Mask) -> Any | None:
    """Return the parameters of a search of a FAISS index on the CPU in so many inverted lists, for
    the rows that ``is_allowed`` (n,) marks; None for the kinds that cannot pass over rows.
    """
    faiss = load_faiss()
    inner = _behind_rotations(index)
    takes_all = (faiss.IndexPQ, faiss.IndexAdditiveQuantizer, faiss.IndexIVFAdditiveQuantizer)
    if isinstance(inner, takes_all):
        return None
    selector = faiss.IDSelectorBitmap(np.packbits(is_allowed, bitorder="little"))
    if isinstance(inner, faiss.IndexIVF):
        parameters = faiss.SearchParametersIVF(sel=selector, nprobe=nprobe)
    else:
        parameters = faiss.SearchParameters(sel=selector)
    if isinstance(faiss.downcast_index(index), faiss.IndexPreTransform):
        parameters = faiss.SearchParametersPreTransform(index_params=parameters)
    return parameters


def on_gpus(index: Any, reporter: Reporter = SILENT) -> Any:
    """Return a FAISS index on all GPUs that FAISS sees.

    The index itself is returned if there are none, or if its kind cannot be on a GPU, which is
    reported.
    """
    faiss = load_faiss()
    if not hasattr(faiss, "StandardGpuResources") or faiss.get_num_gpus() == 0:
        return index
    options = faiss.GpuMultipleClonerOptions()
    options.use_cuvs = False  # cuVS, which some builds have, lacks kinds that FAISS itself has
    # In float32 the tables of 64 pieces do not fit into the shared memory of a GPU
    options.useFloat16 = isinstance(_behind_rotations(index), faiss.IndexIVFPQ)
    try:
        return faiss.index_cpu_to_all_gpus(index, options)
    except RuntimeError as error:
        reporter.message(f"FAISS runs on the CPU, not on a GPU: {last_line(error)}")
        return index


def codes_of(batch: pa.RecordBatch) -> Codes:
    """Return the column ``code`` of rows: uint8 (n, bytes of a code)."""
    column: Any = one_array(batch.column("code"))
    size = column.type.byte_width
    start = column.offset * size
    content = np.frombuffer(column.buffers()[1], np.uint8)
    return content[start : start + len(column) * size].reshape(len(column), size)


def open_codes(store: Store, modality: str, coder: CodeFormat) -> Any:
    """Return a FAISS index of all rows of one modality of an index, in their order.

    Raises:
        StoreError: if a part is damaged, or not the one that the manifest lists.
    """
    whole = load_faiss().clone_index(coder.trained)
    for batch in store.batches(modality, ["code"]):
        add_codes(whole, codes_of(batch))
    inverted = load_faiss().try_extract_index_ivf(whole)
    if inverted:
        inverted.make_direct_map()  # where each row is, for `reconstruct_batch`
    return whole
