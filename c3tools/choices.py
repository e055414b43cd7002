"""Types of options that have a few values; `c3 COMMAND --help` shows them, and others are
refused.
"""

from __future__ import annotations

from typing import Literal

NumberFormat = Literal["float16", "float32"]
"""Of embeddings on disk."""

Precision = Literal["auto", "fp32", "bf16", "fp16"]
"""Of computations; auto is bf16 where the hardware computes in it, else fp32."""

EncoderPrecision = Literal["auto", "fp32", "bf16", "fp16", "int8"]
"""Of encoders, which can also run in int8 on a CPU."""

ExecutorName = Literal["local", "ray"]
"""Where work runs: on this machine, or on a Ray cluster."""

ExportFormat = Literal["parquet", "npy", "safetensors", "hf", "clip-retrieval"]
"""Of exported files; hf is a folder for datasets, clip-retrieval one for that program."""

ExportRole = Literal["auto", "training", "inference"]
"""Which rows of an export are training inputs."""

LongTexts = Literal["cut", "chunk", "mean"]
"""What is done with texts that are longer than the model reads."""

DecoderSize = Literal["tiny", "small", "base", "paper"]
"""Of decoders; paper is GPT-2."""

GeneratorSize = Literal["tiny", "small", "base"]
"""Of image generators."""

Monitor = Literal["text", "cross-modal"]
"""The validation loss that chooses the best epoch of a decoder."""

Steer = Literal["magic", "zerocap"]
"""How an encoder steers a decoder."""
