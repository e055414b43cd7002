"""A pipeline of c3tools behind any model of mteb.

model = mteb.get_model("openai/clip-vit-base-patch32")

mteb.evaluate(RecipeModel(model, pipeline), tasks)
"""

from __future__ import annotations

from typing import Any

import numpy as np
from datasets import Dataset, Image
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ModelMeta, ScoringFunction
from torch.utils.data import DataLoader

from c3tools import Pipeline, load_encoder

MODALITIES = ("image", "text")


class RecipeModel(AbsEncoder):  # type: ignore[misc, unused-ignore]
    """A model of mteb whose embeddings go through a pipeline.

    The model encodes images and texts apart, each row in the modality that it has. A row that has
    both gets the direction of the sum of its two vectors, and the mean of their lengths.

    Args:
        model: any model of mteb that encodes images and texts into one space.
        pipeline: fitted on embeddings of this model, not on those that are scored.
    """

    def __init__(self, model: AbsEncoder, pipeline: Pipeline) -> None:
        self.model = model
        self.pipeline = pipeline
        meta = model.mteb_model_meta
        self.mteb_model_meta = meta.model_copy(
            update={
                "name": f"{meta.name}-{pipeline.name}",
                # Vectors of the preset fair differ in length; of others this is the cosine
                "similarity_fn_name": ScoringFunction.DOT_PRODUCT,
            }
        )

    def encode(self, inputs: DataLoader[Any], **options: Any) -> np.ndarray:
        """Return transformed embeddings, float32 (n, d), of the rows of a loader."""
        rows: Dataset = inputs.dataset
        columns = [name for name in MODALITIES if name in rows.column_names]
        parts = []
        for modality in columns:
            places = places_with(rows, modality)
            if len(places) == 0:
                continue
            other_columns = [name for name in columns if name != modality]
            loader = DataLoader(
                rows.select(places).remove_columns(other_columns),
                batch_size=inputs.batch_size,
                collate_fn=inputs.collate_fn,
            )
            embeddings = self.model.encode(loader, **options)
            part = np.zeros((len(rows), np.shape(embeddings)[1]), np.float32)
            part[places] = self.pipeline.transform(embeddings, modality=modality)
            parts.append(part)

        total = np.sum(parts, axis=0)
        lengths = np.linalg.norm(parts, axis=2)
        mean_lengths = lengths.sum(axis=0) / np.count_nonzero(lengths, axis=0)
        scale = mean_lengths / np.linalg.norm(total, axis=1)
        return np.asarray(total * scale[:, None], np.float32)


def places_with(rows: Dataset, modality: str) -> np.ndarray:
    """Return the places of the rows that have an image, or a text that is not empty."""
    column = rows.select_columns(modality)
    if isinstance(column.features[modality], Image):
        column = column.cast_column(modality, Image(decode=False))
    return np.flatnonzero([bool(value) for value in column[modality]])


class C3Model(AbsEncoder):  # type: ignore[misc, unused-ignore]
    """A model that c3tools loads, for loaders of one modality.

    Args:
        name: as `c3 embed --model` takes it.
    """

    def __init__(self, name: str = "c3-mini") -> None:
        self.encoder = load_encoder(name)
        self.mteb_model_meta = ModelMeta.create_empty(
            {"name": f"c3tools/{name}", "modalities": [*MODALITIES]}
        )

    def encode(self, inputs: DataLoader[Any], **options: Any) -> np.ndarray:
        """Return embeddings, float32 (n, d), of the images or the texts of a loader."""
        is_query = options.get("prompt_type") == "query"
        encode_texts = self.encoder.encode_queries if is_query else self.encoder.encode_texts
        batches = []
        for batch in inputs:
            if "image" in batch:
                batches.append(self.encoder.encode_images(batch["image"]))
            else:
                batches.append(encode_texts(batch["text"]))
        return np.concatenate(batches)
