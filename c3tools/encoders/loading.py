"""The names of models, the weights behind them, and loading one with what runs it."""

from __future__ import annotations

import copy
import difflib
import hashlib
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ..assets.paths import C3_MINI
from ..devices import Compute, pick
from ..errors import C3Error, EncoderError, MissingExtraError, reason_of
from ..identity import UNKNOWN_MODEL
from ..io.files import sha256_of
from ..io.hub import HUB, is_reachable
from ..reporter import SILENT, Reporter
from .encoder import Encoder, Modality
from .openvino_backend import (
    AGREEMENT,
    PROBE_PHOTOS,
    PROBE_TEXTS,
    OpenVINOBackend,
    convert,
    quantized,
)
from .plugins import PluginEncoder, find_plugin
from .preprocessing import ImagePreprocessor
from .tokenizer import ClipTokenizer

if TYPE_CHECKING:
    from torch import nn

DEFAULT_MODEL = "c3-mini"
_LOCAL = "local-dir:"
_FOLDER_KINDS = ("local-dir", "st")
_DOWNLOADS = Path("~/.cache/clip")  # where open_clip keeps weights that it fetched by address
_TAGS_SHOWN = 8
OFFLINE_REMEDY = (
    "Offline, use the bundled --model c3-mini, or a folder on this machine: --model "
    "local-dir:PATH or st:PATH."
)
_NAMES = (
    "A model is c3-mini, ARCH/PRETRAINED (as open_clip lists them), local-dir:PATH, "
    "hf-hub:ORG/NAME, st:NAME, or of "
    "another kind that `c3 models` lists."
)
_HUB_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
# open_clip ends its preprocessing with the conversion to a tensor and the scaling
_TENSOR_STEPS = 2


@dataclass(frozen=True)
class Network:
    """A loaded model.

    Attributes:
        model: open_clip's module.
        tokenizer: from texts to token ids.
        preprocess: from an image to pixels.
        identity: ``name``, ``architecture``, ``pretrained``, ``random_init``.
    """

    model: nn.Module
    tokenizer: Any
    preprocess: ImagePreprocessor
    identity: dict[str, Any]

    def model_config(self) -> dict[str, Any]:
        """Return open_clip's configuration of the architecture."""
        import open_clip  # takes seconds

        return dict(open_clip.get_model_config(_parse_name(self.identity["name"])[0]))

    def describe(self) -> dict[str, Any]:
        """Return what an `Encoder` needs to know beside the towers, by the names of its
        arguments.
        """
        import torch

        from .towers import can_trim, end_token

        with torch.inference_mode():
            features = self.model.encode_text(torch.as_tensor(self.tokenizer(["a photo"])))  # type: ignore[operator]
        return {
            "tokenizer": self.tokenizer,
            "preprocess": self.preprocess,
            "identity": {**self.identity, "weights_sha256": weights_sha256(self.model)},
            "trims_texts": can_trim(self.model, self.tokenizer),
            "end_token": end_token(self.model),
            "dim": features.shape[1],
        }


def load_encoder(
    model: str = DEFAULT_MODEL,
    *,
    random_init: int | None = None,
    device: str | None = None,
    backend: str = "auto",
    precision: str = "auto",
    truncate_dim: int | None = None,
    query_prompt: str | None = None,
    reporter: Reporter = SILENT,
) -> Encoder:
    """Load a contrastive model for inference.

    Args:
        model: ``c3-mini`` (bundled), ``ARCH/PRETRAINED`` as open_clip lists them (PRETRAINED may be
            the path of a weights file), ``local-dir:PATH``, ``hf-hub:ORG/NAME``, ``st:NAME`` or
            ``st:FOLDER`` (what sentence-transformers loads), or ``KIND:…`` of an installed package
            (`c3tools.encoders.plugins`).
        random_init: use random weights, drawn with this seed, instead of the trained ones.
        device: see `c3tools.devices.pick`.
        backend: ``torch`` or ``openvino``; ``auto`` uses OpenVINO on a CPU if it is installed and
            can run the model.
        precision: see `c3tools.devices.pick`; ``auto`` uses bf16 only if the cosine of the
            embeddings with those in fp32 is at least 0.999 for a probe, as that of c3-mini is;
            ``int8`` (backend openvino, extra ``int8``) is refused if it is below 0.99.
        truncate_dim: keep only so many dimensions of the embeddings of an ``st:`` model that was
            trained for it.
        query_prompt: what precedes the queries of an ``st:`` model; None for its own prompt.
        reporter: gets a message if OpenVINO cannot run the model.

    Raises:
        EncoderError: for an unknown name, weights that cannot be loaded, or a backend or precision
            that does not work with the model.
        MissingExtraError: if a package that the backend or int8 needs is not installed.
    """
    own = {"truncate_dim": truncate_dim, "query_prompt": query_prompt}
    own = {name: value for name, value in own.items() if value is not None}
    plugin = find_plugin(model)
    if (random_init is not None or backend not in ("auto", plugin.name)) if plugin else own:
        raise EncoderError(
            f"The model {model} does not take such an option.",
            remedy="Use --random-init and --backend with open_clip, --truncate-dim and "
            "--query-prompt with st:.",
        )
    if plugin:
        with _loading(model):
            made = plugin.load()(
                model.partition(":")[2],
                device=pick(device, precision).device,
                precision=precision,
                **own,
            )
            identity = {**made.identity, **_identity_of_folder(model), "name": model}
            return PluginEncoder(plugin.name, made, identity)
    compute = pick(device, precision, encoder=True)
    if backend not in ("auto", "torch", "openvino"):
        raise C3Error(f"There is no backend {backend!r}.", remedy="Use auto, torch or openvino.")
    required, possible = backend == "openvino" or precision == "int8", False
    if backend != "torch" and compute.device_type == "cpu":
        installed = OpenVINOBackend.is_installed()
        if required and not installed:
            raise MissingExtraError("openvino", extra="openvino", purpose="--backend openvino")
        possible = installed and precision in ("auto", "int8", *OpenVINOBackend.precisions())
    if required and not possible:
        raise EncoderError(
            f"The backend {backend} does not compute in {precision} on {compute.device}.",
            remedy="OpenVINO runs on CPUs, and int8 needs it: use --device cpu and --backend "
            "openvino, or --backend "
            "torch with --precision auto.",
        )
    bundled = read_bundled() if possible and (model, random_init) == (DEFAULT_MODEL, None) else None
    network = None if bundled else load_network(model, random_init=random_init)
    facts = bundled or network.describe()  # type: ignore[union-attr]
    if possible:
        try:
            return Encoder(_by_openvino(network, facts, compute.precision, precision), **facts)
        except EncoderError as error:
            if required:
                raise
            reporter.message(f"{error.message} torch runs it instead.")
        network = load_network(model, random_init=random_init)  # its attentions were replaced
    assert network is not None
    return _by_torch(network, facts, compute, precision)


def _by_openvino(
    network: Network | None, facts: Mapping[str, Any], own: str, asked: str
) -> OpenVINOBackend:
    """Return a model, or the bundled one for None, in the precision asked for; ``auto``: in the
    CPU's own if it agrees.

    Of the bundled model it is known that bf16 agrees: to measure it would take two seconds of each
    run.
    """
    if network is None:
        towers: dict[Modality, Any] = {
            "image": C3_MINI / "image.onnx",
            "text": C3_MINI / "text.onnx",
        }
        backend = OpenVINOBackend(towers, "fp32" if asked == "int8" else own)
    else:
        backend = convert(network.model, facts, (own, "fp32") if asked == "auto" else ("fp32",))
    if asked == "int8":
        return quantized(Encoder(backend, **facts))
    return (
        backend
        if asked in ("auto", backend.compute.precision)
        else OpenVINOBackend(backend.towers, asked)
    )


def _by_torch(network: Network, facts: Mapping[str, Any], compute: Compute, asked: str) -> Encoder:
    """Return a model in a precision; with ``auto`` in fp32 where the embeddings of a few inputs
    differ too much.
    """
    from .towers import TorchBackend

    precisions = (
        dict.fromkeys((compute.precision, "fp32")) if asked == "auto" else [compute.precision]
    )
    models = {
        one: network.model if one == "fp32" else copy.deepcopy(network.model) for one in precisions
    }
    encoders = [
        Encoder(
            TorchBackend(
                own, network.preprocess, Compute(compute.device, one), facts["trims_texts"]
            ),
            **facts,
        )
        for one, own in models.items()
    ]
    rounded, exact = encoders[0], encoders[-1]
    if rounded is exact:
        return rounded
    a, b = (
        np.concatenate(
            [
                one.encode_images(PROBE_PHOTOS, batch_size=len(PROBE_PHOTOS)),
                one.encode_texts(PROBE_TEXTS),
            ]
        )
        for one in (exact, rounded)
    )
    return rounded if float((a * b).sum(axis=1).min()) >= AGREEMENT else exact


def load_network(model: str = DEFAULT_MODEL, *, random_init: int | None = None) -> Network:
    """Load a contrastive model in float32, with its tokenizer and preprocessing; no weight requires
    a gradient yet.

    Raises:
        EncoderError: for an unknown name, or weights that cannot be loaded.
    """
    if find_plugin(model):
        raise EncoderError(
            f"{model} is not a model of open_clip.", remedy="Choose one of `c3 models`."
        )
    architecture, pretrained = _parse_name(model)
    _require_known(model, weights=random_init is None)
    import open_clip  # takes seconds
    import torch

    with _loading(model), torch.random.fork_rng(devices=[]):
        torch.manual_seed((random_init or 0) % 2**63)  # torch takes no larger one
        network, _, transform = open_clip.create_model_and_transforms(
            architecture,
            pretrained=pretrained if random_init is None else None,
            load_weights=random_init is None,
            pretrained_image=False,
            # random weights of a text tower are not those that its maker trained
            pretrained_hf=False,
            precision="fp32",
            device="cpu",
        )
        tokenizer = open_clip.get_tokenizer(architecture)
    network.eval().requires_grad_(False)
    config: dict[str, Any] = dict(network.visual.preprocess_cfg)
    steps = tuple(
        step
        for step in transform.transforms[:-_TENSOR_STEPS]
        if type(step).__name__ != "MaybeConvertMode"
    )
    preprocess = ImagePreprocessor(steps, config)
    identity = {
        "name": model,
        "architecture": model if ":" in architecture else architecture,
        "pretrained": pretrained,
        "random_init": random_init,
        **_identity_of_folder(model),
    }
    return Network(network, tokenizer, preprocess, identity)


def _identity_of_folder(model: str) -> dict[str, str]:
    """Return the absolute path of a model in a folder that is named by a relative one."""
    kind, _, name = model.partition(":")
    folder = Path(name).expanduser()
    if kind not in _FOLDER_KINDS or folder.is_absolute() or not folder.is_dir():
        return {}
    return {"folder": str(folder.resolve())}


def _name_from_here(recorded: Mapping[str, Any]) -> str:
    """Return the name of a recorded model; by its absolute path if its relative one leads nowhere
    from the current folder.
    """
    kind, _, name = str(recorded["name"]).partition(":")
    folder = recorded.get("folder")
    if folder and not Path(name).expanduser().is_dir() and Path(folder).is_dir():
        return f"{kind}:{folder}"
    return str(recorded["name"])


def read_bundled(folder: Path = C3_MINI) -> dict[str, Any] | None:
    """Return what an `Encoder` needs to know of the bundled model, so that it starts without
    open_clip and torch.

    ``encoder.json`` is written by examples/c3_mini/describe.py, from the model itself, and so are
    its towers as ONNX graphs, whose weights are those of the weights file.

    Returns:
        The arguments of `Encoder` by name; None if a file in the folder is not the one that was
        described.
    """
    try:
        noted = json.loads((folder / "encoder.json").read_text(encoding="utf-8"))
        config = json.loads((folder / "open_clip_config.json").read_text(encoding="utf-8"))
        if any(sha256_of(folder / name) != digest for name, digest in noted["sha256"].items()):
            return None
        preprocessing = noted["preprocessing"]
        size = preprocessing["size"] = tuple(preprocessing["size"])
        squash = partial(Image.Image.resize, size=size[::-1], resample=Image.Resampling.BICUBIC)
        return {
            "tokenizer": ClipTokenizer(config["model_cfg"]["text_cfg"]["context_length"]),
            "preprocess": ImagePreprocessor((squash,), preprocessing),
            **{name: noted[name] for name in ("identity", "trims_texts", "end_token", "dim")},
        }
    except (OSError, ValueError, KeyError, TypeError):
        return None


def resolve_encoder(
    model: str | None = None,
    *,
    recorded: Mapping[str, Any] | None = None,
    random_init: int | None = None,
    reporter: Reporter = SILENT,
    **options: Any,
) -> Encoder:
    """Load the encoder that the user requested, else the recorded one, else the bundled one.

    Args:
        model: the model's name, as in `load_encoder`; None for the recorded model.
        recorded: the identity recorded in a store, decoder or index
            (`c3tools.identity.ModelIdentity`); its weights have to be the same still. None or empty
            if no model is recorded.
        random_init: see `load_encoder`.
        reporter: is told when the bundled model is used because no other was named; see
            `load_encoder`.
        options: of `load_encoder`.

    Raises:
        EncoderError: if the model cannot be loaded, or its weights are not the recorded ones.
    """
    then = None
    if model is None and random_init is None and recorded:
        if recorded["name"] == UNKNOWN_MODEL:
            raise EncoderError(
                "The embeddings were imported without the name of their model, so queries and "
                "other inputs cannot be encoded.",
                remedy="Search with --vector or --key, or import the embeddings again with "
                "--model NAME.",
            )
        model, random_init, then = (
            _name_from_here(recorded),
            recorded.get("random_init"),
            recorded.get("weights_sha256"),
        )
        given = {name: value for name, value in options.items() if value is not None}
        options = {
            **{name: recorded.get(name) for name in ("truncate_dim", "query_prompt")},
            **given,
        }
    elif model is None:
        reporter.message(
            f"Using the bundled model {DEFAULT_MODEL}, which is small and meant for trying things "
            f"out. For real work "
            "choose another, for example --model ViT-B-32/openai."
        )
    encoder = load_encoder(
        model or DEFAULT_MODEL, random_init=random_init, reporter=reporter, **options
    )
    now = str(encoder.identity.weights_sha256)
    if then and then != now:
        raise EncoderError(
            f"The weights of the model {model} have changed: they are {now[:12]}, but {then[:12]} "
            f"was recorded.",
            remedy="Use the old weights, or embed again into another --store.",
        )
    return encoder


def weights_sha256(network: nn.Module) -> str:
    """Return the SHA-256 over names, shapes and float32 values of all weights: the same for any
    file format.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().float().contiguous().cpu().numpy().data)
    return digest.hexdigest()


@contextmanager
def _loading(model: str) -> Iterator[None]:
    """Turn whatever libraries and hubs raise, which has no common base class, into one error."""
    try:
        with quiet():
            yield
    except C3Error:
        raise
    except Exception as error:
        said = f"{type(error).__name__}: {reason_of(error)}"
        raise EncoderError(
            f"The model {model} could not be loaded: {said}", remedy=OFFLINE_REMEDY
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Hide log lines and warnings of the libraries that load models: a user can do nothing about
    them.
    """
    previous = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)


def _parse_name(model: str) -> tuple[str, str | None]:
    """Return what open_clip calls a model: an architecture or a name with a schema, and a tag or a
    file of weights.

    Raises:
        EncoderError: for a ``local-dir:`` that is not a folder of a model.
    """
    if model == DEFAULT_MODEL:
        return f"{_LOCAL}{C3_MINI}", None
    if model.startswith(_LOCAL):
        folder = Path(model.removeprefix(_LOCAL)).expanduser()
        if not (folder / "open_clip_config.json").is_file():
            raise EncoderError(
                f"{folder} is not a local model: open_clip_config.json is missing.",
                remedy="A local-dir: model is a folder with open_clip_config.json and the weights.",
            )
        return f"{_LOCAL}{folder}", None
    if model.startswith(HUB):
        return model, None
    architecture, _, pretrained = model.partition("/")
    return architecture, pretrained or None


def _require_known(model: str, *, weights: bool) -> None:
    """Refuse a model that is unknown or whose weights cannot be loaded, within seconds: the hubs
    try for a minute.

    Raises:
        EncoderError: with the names that are close, or the server that does not answer.
    """
    import open_clip  # takes seconds
    from huggingface_hub import constants

    architecture, pretrained = _parse_name(model)
    if architecture.startswith(_LOCAL):
        return
    known: list[str] = [*open_clip.list_models(), DEFAULT_MODEL]
    if architecture.startswith(HUB):
        source = {"hf_hub": f"{architecture.removeprefix(HUB).partition('@')[0]}/"}
    elif architecture not in known:
        close = difflib.get_close_matches(architecture, known, n=3)
        hint = f"Did you mean {' or '.join(close)}? " if close else ""
        raise EncoderError(
            f"There is no model {model!r}.",
            remedy=hint + _NAMES,
        )
    elif not weights:
        return
    else:
        tags = open_clip.list_pretrained_tags_by_model(architecture)
        if pretrained not in tags:
            if Path(pretrained or "").is_file():
                return
            close = difflib.get_close_matches(pretrained or "", tags, n=_TAGS_SHOWN, cutoff=0.4)
            shown = list(dict.fromkeys([*close, *tags]))[:_TAGS_SHOWN]
            lines = ["Add pretrained weights, or use random weights with --random-init SEED:"]
            lines += [f"  {architecture}/{tag}" for tag in shown]
            raise EncoderError(
                f"{model!r} names no pretrained weights of {architecture}, and no such file.",
                remedy="\n".join([*lines, f"All are listed by: c3 models {architecture}/"]),
            )
        source = open_clip.get_pretrained_cfg(architecture, pretrained)
    server = str(constants.ENDPOINT if source.get("hf_hub") else source.get("url"))
    if weights and not _is_local(source) and not is_reachable(server):
        raise EncoderError(
            f"The weights of {model} are not on this machine, and they cannot be downloaded: "
            f"{server} does not answer.",
            remedy=OFFLINE_REMEDY,
        )


def list_models(containing: str = "", *, here: bool = False) -> list[dict[str, Any]]:
    """List the models that can be loaded by name, the bundled one first.

    Args:
        containing: List only names that contain this text, for example ViT-B-32.
        here: List only models whose weights are on this machine.

    Returns:
        Of each model ``name``, ``dim`` (of its embeddings), ``image_size`` (pixels),
        ``context_length`` (tokens),
        ``source`` (``bundled``, or where the weights come from) and ``here`` (whether they are on
        this machine).

    Raises:
        EncoderError: if there is no such model.
    """
    import open_clip  # takes seconds

    config = json.loads((C3_MINI / "open_clip_config.json").read_text(encoding="utf-8"))[
        "model_cfg"
    ]
    found = [(DEFAULT_MODEL, config, "bundled", True)]
    for architecture, tag in open_clip.list_pretrained():
        weights, config = (
            open_clip.get_pretrained_cfg(architecture, tag),
            open_clip.get_model_config(architecture),
        )
        if weights and config is not None:
            source = str(weights.get("hf_hub") or weights.get("url") or "").rstrip("/")
            found.append((f"{architecture}/{tag}", config, source, _is_local(weights)))
    models = [
        {
            "name": name,
            "dim": config["embed_dim"],
            "image_size": int(np.max(config["vision_cfg"].get("image_size", 224))),
            "context_length": config["text_cfg"].get("context_length", 77),
            "source": source,
            "here": on_machine,
        }
        for name, config, source, on_machine in found
        if containing.lower() in name.lower() and (on_machine or not here)
    ]
    if not models:
        where = " with weights on this machine" if here else ""
        raise EncoderError(
            f"No model{where} has {containing!r} in its name.",
            remedy="`c3 models` lists all names. A folder is local-dir:PATH, and a repository of "
            "the hub is "
            "hf-hub:ORG/NAME.",
        )
    return models


def _is_local(weights: Mapping[str, Any]) -> bool:
    """Return whether weights, as open_clip describes them (``url``, ``hf_hub``), are on this
    machine.
    """
    from huggingface_hub import try_to_load_from_cache

    address = str(weights.get("url") or "")
    if address and (_DOWNLOADS.expanduser() / address.rsplit("/", 1)[-1]).is_file():
        return True
    repository, _, file = str(weights.get("hf_hub") or "").rpartition("/")
    files = ((file,) if file else _HUB_FILES) if repository else ()
    return any(isinstance(try_to_load_from_cache(repository, name), str) for name in files)
