"""Loading an encoder: its model, with the backend that runs it."""

from __future__ import annotations

import copyreg
import json
from collections.abc import Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from PIL import Image

from ..assets.paths import C3_MINI
from ..choices import EncoderPrecision, PositiveInt, checked
from ..devices import pick
from ..errors import EncoderError
from ..identity import UNKNOWN_MODEL
from ..io.files import sha256_of
from ..reporter import SILENT, Reporter
from .backend import AUTO
from .backends import fitting_backends
from .clip_tokenizer import ClipTokenizer
from .encoder import Encoder, Modality, ModelFacts
from .networks import (
    DEFAULT_MODEL,
    explain_failures,
    identity_of_folder,
    load_network,
    name_from_here,
)
from .plugins import PluginEncoder, find_plugin
from .preprocessing import ImagePreprocessor

_BUNDLED_GRAPHS: dict[Modality, Path] = {
    "image": C3_MINI / "image.onnx",
    "text": C3_MINI / "text.onnx",
}


@checked
def load_encoder(
    model: str = DEFAULT_MODEL,
    *,
    random_init: int | None = None,
    device: str | None = None,
    backend: str = "auto",
    precision: EncoderPrecision = "auto",
    truncate_dim: PositiveInt | None = None,
    query_prompt: str | None = None,
    reporter: Reporter = SILENT,
) -> Encoder:
    """Load a contrastive model for inference.

    A pickle of the encoder contains only its name and settings. Unpickling loads the model again,
    and its weights must be the same.

    Args:
        model: ``c3-mini`` (bundled), ``ARCH/PRETRAINED`` as open_clip lists them (PRETRAINED may be
            the path of a weights file), ``local-dir:PATH``, ``hf-hub:ORG/NAME``, ``st:NAME`` or
            ``st:FOLDER`` (what sentence-transformers loads), or ``KIND:…`` of an installed package
            (`c3tools.encoders.plugins`).
        random_init: use random weights, drawn with this seed, instead of the trained ones.
        device: see `c3tools.devices.pick`.
        backend: a name in `c3tools.encoders.backends.BACKENDS`; ``auto`` uses the first of them
            that is installed, runs on the device, and can run the model.
        precision: see `c3tools.devices.pick`; ``auto`` uses bf16 only if its embeddings of a probe
            have a cosine of at least 0.999 with fp32, as with c3-mini; ``int8`` (backend openvino,
            extra ``int8``) is refused if it is below 0.99.
        truncate_dim: keep only this many dimensions of the embeddings of an ``st:`` model that was
            trained for it.
        query_prompt: what precedes the queries of an ``st:`` model; None for its own prompt.
        reporter: gets a message if the preferred backend cannot run the model.

    Raises:
        EncoderError: for an unknown name, weights that cannot be loaded, or a backend or precision
            that does not work with the model.
        MissingExtraError: if a package that the backend or int8 needs is not installed.

    Example:
        >>> encoder = c3tools.load_encoder("c3-mini")
        >>> texts = encoder.encode_texts(["a dog", "a puppy", "a red bus"])
        >>> texts.shape
        (3, 256)
        >>> np.round(texts[0] @ texts[1:].T, 2)  # cosines with "a dog"
        array([0.94, 0.68], dtype=float32)
    """
    plugin = find_plugin(model)
    plugin_options = {"truncate_dim": truncate_dim, "query_prompt": query_prompt}
    plugin_options = {name: value for name, value in plugin_options.items() if value is not None}
    if plugin:
        if random_init is not None or backend not in (AUTO, plugin.name):
            raise _unknown_option(model)
        with explain_failures(model):
            plugin_model = plugin.load()(
                model.partition(":")[2],
                device=pick(device, precision).device,
                precision=precision,
                **plugin_options,
            )
            identity = {**plugin_model.identity, **identity_of_folder(model), "name": model}
            return PluginEncoder(plugin.name, plugin_model, identity)
    if plugin_options:
        raise _unknown_option(model)
    compute = pick(device, precision, encoder=True)
    backends = fitting_backends(backend, compute, precision)
    if model == DEFAULT_MODEL and random_init is None and backends[0].reads_graphs:
        # Without open_clip and torch, which take seconds to import
        facts = read_bundled()
        if facts is not None:
            return Encoder(
                backends[0].from_graphs(_BUNDLED_GRAPHS, facts, compute, precision), facts
            )
    network = load_network(model, random_init=random_init)
    facts = network.describe()
    for candidate, following in pairwise(backends):
        try:
            return Encoder(candidate.convert(network.model, facts, compute, precision), facts)
        except EncoderError as error:
            reporter.message(f"{error.message} {following.name} runs it instead.")
    return Encoder(backends[-1].convert(network.model, facts, compute, precision), facts)


def _unknown_option(model: str) -> EncoderError:
    return EncoderError(
        f"The model {model} does not support this option.",
        remedy="--random-init and --backend are for open_clip models, --truncate-dim and "
        "--query-prompt for st: models.",
    )


def read_bundled(folder: Path = C3_MINI) -> ModelFacts | None:
    """Return what an `Encoder` needs to know of the bundled model, without open_clip and torch.

    ``encoder.json`` is written by examples/c3_mini/describe.py, from the model itself, and so are
    its towers as ONNX graphs, whose weights are those of the weights file.

    Returns:
        None if a file in the folder is not the one that was described.
    """
    try:
        description = json.loads((folder / "encoder.json").read_text(encoding="utf-8"))
        config = json.loads((folder / "open_clip_config.json").read_text(encoding="utf-8"))
        for name, digest in description["sha256"].items():
            if sha256_of(folder / name) != digest:
                return None
        preprocessing = description["preprocessing"]
        height, width = preprocessing["size"]
        preprocessing["size"] = (height, width)
        squash = partial(
            Image.Image.resize, size=(width, height), resample=Image.Resampling.BICUBIC
        )
        return ModelFacts(
            tokenizer=ClipTokenizer(config["model_cfg"]["text_cfg"]["context_length"]),
            preprocess=ImagePreprocessor((squash,), preprocessing),
            identity=description["identity"],
            trims_texts=description["trims_texts"],
            end_token=description["end_token"],
            dim=description["dim"],
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def resolve_encoder(
    model: str | Encoder | None = None,
    *,
    recorded: Mapping[str, Any] | None = None,
    random_init: int | None = None,
    reporter: Reporter = SILENT,
    **options: Any,
) -> Encoder:
    """Load the encoder that the user names, else the recorded one, else the bundled one.

    Args:
        model: the model's name, as in `load_encoder`; None for the recorded model. An encoder is
            returned as it is.
        recorded: the identity recorded in a store, decoder or index
            (`c3tools.identity.ModelIdentity`); its weights have to be the same still. None or empty
            if no model is recorded.
        random_init: see `load_encoder`.
        reporter: gets a message if the bundled model is used because no other was named; see
            `load_encoder`.
        options: of `load_encoder`.

    Raises:
        EncoderError: if the model cannot be loaded, or its weights are not the recorded ones.
    """
    if model is not None and not isinstance(model, str):
        return model
    recorded_weights = None
    if model is None and random_init is None and recorded:
        if recorded["name"] == UNKNOWN_MODEL:
            raise EncoderError(
                "The embeddings were imported without the name of their model, so queries and "
                "other inputs cannot be encoded.",
                remedy="Search with --vector or --key, or import the embeddings again with "
                "--model NAME.",
            )
        model = name_from_here(recorded)
        random_init = recorded.get("random_init")
        recorded_weights = recorded.get("weights_sha256")
        options = {name: value for name, value in options.items() if value is not None}
        for name in ("truncate_dim", "query_prompt"):
            options.setdefault(name, recorded.get(name))
    elif model is None:
        reporter.message(
            f"Using the bundled model {DEFAULT_MODEL}, which is small and meant for trying things "
            f"out. For real work, choose a larger model, for example --model ViT-B-32/openai."
        )
    encoder = load_encoder(
        model or DEFAULT_MODEL, random_init=random_init, reporter=reporter, **options
    )
    weights = str(encoder.identity.weights_sha256)
    if recorded_weights and recorded_weights != weights:
        raise EncoderError(
            f"The weights of the model {model} have changed: they are {weights[:12]}, but "
            f"{recorded_weights[:12]} was recorded.",
            remedy="Use the old weights, or embed everything again into another --store.",
        )
    return encoder


def _pickled(encoder: Encoder) -> tuple[Any, ...]:
    """Return the call that loads an encoder again: a pickle has its name and settings alone."""
    load = partial(
        resolve_encoder,
        recorded=dict(encoder.identity),
        device=encoder.compute.device,
        backend=encoder.backend.name,
        precision=encoder.compute.precision,
    )
    return load, ()


copyreg.pickle(Encoder, _pickled)
copyreg.pickle(PluginEncoder, _pickled)
