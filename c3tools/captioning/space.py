"""Check that embeddings come from the space that a decoder was trained for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..arrays import Mask, Matrix
from ..errors import DecoderError
from ..moments import unit_rows
from ..reporter import Reporter, counted
from ..transforms import Pipeline

UNIT_TOLERANCE = 0.01
_NAMED = 3
# The embeddings of a modality lie around its mean: along it c3-mini's photos come to 0.93 to 1.08 of its length, its
# texts, given as photos, to 0.22 to 0.30, random directions to at most 0.25. Near the origin a mean tells nothing.
_FAR, _SHORTEST_MEAN = 0.5, 0.3


def check_space(
    embeddings: Matrix, pipeline: Pipeline, model: str, modality: str, keys: Sequence[str], reporter: Reporter
) -> None:
    """Refuse embeddings that cannot be those of a decoder's model, and tell of those that hardly are.

    Refused are embeddings with NaN or infinity, or of norm 0, and embeddings that are all far from the mean of their
    modality, if the pipeline has one: they are of another model or modality, or they are transformed already. If
    some are far, or norms differ from 1, the reporter is told.

    Args:
        embeddings: float32 (n, d).
        pipeline: of the decoder.
        model: its name.
        modality: whose embeddings they are.
        keys: one per row, for messages.
        reporter: is told what may be wrong.

    Raises:
        DecoderError: if they are refused.
    """
    refused: list[tuple[Mask, str]] = [
        (~np.array(np.isfinite(embeddings).all(axis=1)), "contain NaN or infinity"),
        (~np.array(embeddings.any(axis=1)), "are zero vectors, which have no direction"),
    ]
    for bad, what in refused:
        if bad.any():
            raise DecoderError(f"{_named(keys, bad)} {what}.", remedy="Leave them out, or embed them again.")
    norms = np.linalg.norm(embeddings, axis=1)
    off = np.abs(norms - 1) > UNIT_TOLERANCE
    if off.any():
        low, high = (f"{norm:.3g}" for norm in (norms[off].min(), norms[off].max()))
        span = f"norm {low}" if low == high else f"norms from {low} to {high}"
        reporter.message(f"{_named(keys, off)} have {span}, but those of {model} have norm 1.")
    means = _means(pipeline)
    if modality not in means or not len(embeddings):
        return
    unit = unit_rows(embeddings)
    shares = {name: unit @ mean / (mean @ mean) for name, mean in means.items()}
    far = shares[modality] < _FAR
    if not far.any():
        return
    near = [name for name, share in shares.items() if np.median(share[far]) >= _FAR]
    message = f"{_named(keys, far)} are far from the mean of {modality} embeddings of {model}"
    message += f", but close to that of {near[0]} embeddings" if near else ""
    if far.all():
        raise DecoderError(
            f"{message}.",
            remedy=f"If they are {near[0]} embeddings, use --modality {near[0]}."
            if near
            else "Use embeddings of the same model, exactly as the encoder computes them, without a transform.",
        )
    reporter.message(f"{message}, so their captions may be wrong.")


def _means(pipeline: Pipeline) -> dict[str, Matrix]:
    """Return the means that a pipeline subtracts from unit rows first, by modality, without those near 0."""
    for step in pipeline.steps:
        found = {
            key.removeprefix("mean/"): np.asarray(mean, dtype=np.float32)
            for key, mean in step.state.items()
            if key.startswith("mean/")
        }
        if found or step.kind != "normalize":
            return {name: mean for name, mean in found.items() if np.linalg.norm(mean) >= _SHORTEST_MEAN}
    return {}


def _named(keys: Sequence[str], chosen: Mask) -> str:
    """Return the number of chosen embeddings, and the keys of the first ones."""
    first = [keys[row] for row in np.flatnonzero(chosen)[:_NAMED]]
    more = ", …" if chosen.sum() > _NAMED else ""
    return f"{chosen.sum():,} of {counted(len(chosen), 'embedding')} ({', '.join(first)}{more})"
