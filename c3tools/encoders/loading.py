"""Load a model by its name, with errors that say what to do."""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..errors import EncoderError
from ..reporter import SILENT, Reporter
from .bundled import read_description
from .calibration import Calibration
from .encoder import Encoder
from .models import DEFAULT_MODEL, OFFLINE_REMEDY, ModelName, require_weights
from .preprocessing import ImagePreprocessor
from .selection import EncoderFactory, Network, describe

if TYPE_CHECKING:
    from torch import nn

_TENSOR_STEPS = 2  # open_clip ends its preprocessing with the conversion to a tensor and the scaling


def load_encoder(
    model: str = DEFAULT_MODEL,
    *,
    random_init: int | None = None,
    device: str | None = None,
    backend: str = "auto",
    precision: str = "auto",
    compiled: bool = False,
    calibration: Calibration | None = None,
    reporter: Reporter = SILENT,
) -> Encoder:
    """Load a contrastive model for inference.

    Args:
        model: ``c3-mini`` (bundled), ``ARCH/PRETRAINED`` as open_clip lists them (PRETRAINED may be the path of a
            weights file), ``local-dir:PATH`` or ``hf-hub:ORG/NAME``.
        random_init: use random weights, drawn with this seed, instead of the trained ones.
        device: see `c3tools.devices.pick`.
        backend: ``torch``, ``openvino`` or ``onnx``; ``auto`` uses the fastest installed one on a CPU. A model is
            converted once and kept in a cache (`c3tools.encoders.backends.ModelCache`).
        precision: see `c3tools.devices.pick`; ``auto`` uses bf16 only if the cosine of the embeddings with those in
            fp32 is at least 0.999 for a probe; ``int8`` (backend openvino, extra ``int8``) is refused if it is below
            0.99.
        compiled: compile the model with `torch.compile`.
        calibration: the inputs that the scales of int8 are measured on; None for bundled photos and captions.
        reporter: gets messages about measurements, and about backends that do not work with the model.

    Raises:
        EncoderError: for an unknown name, weights that cannot be loaded, or a backend, precision or compilation that
            does not work with the model.
        MissingExtraError: if a package that the backend or int8 needs is not installed.
    """
    described = read_description() if model == DEFAULT_MODEL and random_init is None else None
    if described is not None:
        factory = EncoderFactory(described, lambda: load_network(model).model, reporter)
    else:
        network = load_network(model, random_init=random_init)
        factory = EncoderFactory(describe(network, weights_sha256(network.model)), lambda: network.model, reporter)
    return factory.select(device, backend, precision, compiled, calibration)


def load_network(model: str = DEFAULT_MODEL, *, random_init: int | None = None) -> Network:
    """Load a contrastive model in float32, with its tokenizer and preprocessing; no weight requires a gradient yet.

    Raises:
        EncoderError: for an unknown name, or weights that cannot be loaded.
    """
    name = ModelName.parse(model)
    if random_init is None:
        require_weights(name)
    else:
        name.require_known()
    network, transform, tokenizer = _create(name, random_init)
    network.eval().requires_grad_(False)
    identity = {
        "name": name.name,
        "architecture": name.name if name.has_schema or model == DEFAULT_MODEL else name.architecture,
        "pretrained": name.pretrained,
        "random_init": random_init,
    }
    return Network(network, tokenizer, _preprocessor(network, transform), identity)


def resolve_encoder(
    model: str | None = None,
    *,
    recorded: Mapping[str, Any] | None = None,
    random_init: int | None = None,
    device: str | None = None,
    backend: str = "auto",
    recorded_backend: str | None = None,
    precision: str = "auto",
    recorded_precision: str | None = None,
    compiled: bool = False,
    calibration: Calibration | None = None,
    reporter: Reporter = SILENT,
) -> Encoder:
    """Load the encoder that the user requested, else the recorded one, else the bundled one.

    Args:
        model: the model's name, as in `load_encoder`; None for the recorded model.
        recorded: the identity recorded in a store, decoder or index (`c3tools.identity.ModelIdentity`); its weights
            have to be the same still. None or empty if no model is recorded.
        random_init, device, backend, precision, compiled, calibration: see `load_encoder`.
        recorded_backend, recorded_precision: what ``auto`` stands for, if it is recorded.
        reporter: is told when the bundled model is used because no other was named; see `load_encoder`.

    Raises:
        EncoderError: if the model cannot be loaded, or its weights are not the recorded ones.
    """
    if precision == "auto":
        precision = recorded_precision or "auto"
    if backend == "auto":
        # what was recorded before there were several was made by torch
        backend = recorded_backend or ("torch" if recorded_precision else "auto")
    if model is None and random_init is None and recorded:
        encoder = load_encoder(
            recorded["name"],
            random_init=recorded.get("random_init"),
            device=device,
            backend=backend,
            precision=precision,
            compiled=compiled,
            calibration=calibration,
            reporter=reporter,
        )
        now, then = encoder.identity["weights_sha256"], recorded.get("weights_sha256")
        if then and then != now:
            raise EncoderError(
                f"The weights of the model {recorded['name']} have changed: they are {now[:12]}, but {then[:12]} was "
                "recorded.",
                remedy="Use the old weights, or embed again into another --store.",
            )
        return encoder
    if model is None:
        reporter.message(
            f"Using the bundled model {DEFAULT_MODEL}, which is small and meant for trying things out. For real work "
            "choose another, for example --model ViT-B-32/openai."
        )
    return load_encoder(
        model or DEFAULT_MODEL,
        random_init=random_init,
        device=device,
        backend=backend,
        precision=precision,
        compiled=compiled,
        calibration=calibration,
        reporter=reporter,
    )


def weights_sha256(network: nn.Module) -> str:
    """Return the SHA-256 over names, shapes and float32 values of all weights: the same for any file format."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().float().contiguous().cpu().numpy().data)
    return digest.hexdigest()


def _create(name: ModelName, random_init: int | None) -> tuple[nn.Module, Any, Any]:
    import open_clip  # takes seconds
    import torch

    try:
        with _quiet(), torch.random.fork_rng(devices=[]):
            torch.manual_seed((random_init or 0) % 2**63)  # torch takes no larger one
            network, _, transform = open_clip.create_model_and_transforms(
                name.architecture,
                pretrained=name.pretrained if random_init is None else None,
                load_weights=random_init is None,
                pretrained_image=False,
                pretrained_hf=False,  # random weights of a text tower are not those that its maker trained
                precision="fp32",
                device="cpu",
            )
            tokenizer = open_clip.get_tokenizer(name.architecture)
    except Exception as error:
        # open_clip and the hubs raise whatever their layers raise: no common base class, so all are turned into one
        reason = " ".join(str(error).split())[:300]
        raise EncoderError(
            f"The model {name.name} could not be loaded: {type(error).__name__}: {reason}", remedy=OFFLINE_REMEDY
        ) from error
    return network, transform, tokenizer


def _preprocessor(network: nn.Module, transform: Any) -> ImagePreprocessor:
    config = dict(network.visual.preprocess_cfg)  # type: ignore[union-attr,arg-type]
    size = config["size"]
    height, width = (size, size) if isinstance(size, int) else tuple(size)[-2:]
    steps = tuple(step for step in transform.transforms[:-_TENSOR_STEPS] if type(step).__name__ != "MaybeConvertMode")
    return ImagePreprocessor(steps, (height, width), tuple(config["mean"]), tuple(config["std"]), config)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the log lines of open_clip and the warnings of the hubs while a model is loaded."""
    previous = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
