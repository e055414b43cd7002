"""Models of open_clip: their names, their weights, and loading them."""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..assets.paths import C3_MINI
from ..errors import C3Error, EncoderError, explain_missing, reason_of
from ..io.hub import HUB, is_reachable
from ..result_table import Table
from .clip_tokenizer import VOCABULARY, ClipTokenizer
from .encoder import ModelFacts
from .plugins import find_plugin
from .preprocessing import ImagePreprocessor

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
    "hf-hub:ORG/NAME, st:NAME, or another kind that `c3 models` lists."
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
        identity: ``name``, ``architecture``, ``pretrained``, ``random_init``; of a model in a
            folder with a relative path also ``folder``.
    """

    model: nn.Module
    tokenizer: Any
    preprocess: ImagePreprocessor
    identity: dict[str, Any]

    def model_config(self) -> dict[str, Any]:
        """Return open_clip's configuration of the architecture."""
        import open_clip  # takes seconds

        return dict(open_clip.get_model_config(_parse_name(self.identity["name"])[0]))

    def describe(self) -> ModelFacts:
        """Return what an `Encoder` needs to know of the model."""
        import torch

        from .towers import can_trim, end_token

        with torch.inference_mode():
            tokens = torch.as_tensor(self.tokenizer(["a photo"]))
            features = self.model.encode_text(tokens)  # type: ignore[operator]
        return ModelFacts(
            tokenizer=self.tokenizer,
            preprocess=self.preprocess,
            identity={**self.identity, "weights_sha256": weights_sha256(self.model)},
            trims_texts=can_trim(self.model, self.tokenizer),
            end_token=end_token(self.model),
            dim=features.shape[1],
        )


@explain_missing("A model of open_clip")
def load_network(model: str = DEFAULT_MODEL, *, random_init: int | None = None) -> Network:
    """Load a contrastive model in float32, with its tokenizer and preprocessing.

    No weight requires a gradient yet.

    Args:
        model: a name, as in `c3tools.load_encoder`.
        random_init: the seed of random weights; None for the trained ones.

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

    with explain_failures(model), torch.random.fork_rng(devices=[]):
        # Weights are drawn first, and trained ones replace them. torch takes no larger seed
        torch.manual_seed((random_init or 0) % 2**63)
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
        tokenizer: Any = open_clip.get_tokenizer(architecture)
        of_clip = open_clip.tokenizer
        if (
            type(tokenizer) is of_clip.SimpleTokenizer
            and tokenizer.clean_fn is of_clip._clean_lower
            and tokenizer.reduction_fn is None
            and tokenizer.vocab_size == VOCABULARY
        ):
            tokenizer = ClipTokenizer(tokenizer.context_length)  # the same tokens, sooner
    network.eval().requires_grad_(False)
    config: dict[str, Any] = dict(network.visual.preprocess_cfg)
    geometry = tuple(
        step
        for step in transform.transforms[:-_TENSOR_STEPS]
        if type(step).__name__ != "MaybeConvertMode"
    )
    preprocess = ImagePreprocessor(geometry, config)
    identity = {
        "name": model,
        # local-dir: and hf-hub: bring their architecture, so the whole name stands for it
        "architecture": model if ":" in architecture else architecture,
        "pretrained": pretrained,
        "random_init": random_init,
        **identity_of_folder(model),
    }
    return Network(network, tokenizer, preprocess, identity)


def identity_of_folder(model: str) -> dict[str, str]:
    """Return the absolute path of a model in a folder that is named by a relative one."""
    kind, _, name = model.partition(":")
    folder = Path(name).expanduser()
    if kind not in _FOLDER_KINDS or folder.is_absolute() or not folder.is_dir():
        return {}
    return {"folder": str(folder.resolve())}


def name_from_here(recorded: Mapping[str, Any]) -> str:
    """Return the name of a recorded model, such that it is found from the current folder.

    That is by its absolute path, if its relative one leads nowhere from here.
    """
    kind, _, name = str(recorded["name"]).partition(":")
    folder = recorded.get("folder")
    if folder and not Path(name).expanduser().is_dir() and Path(folder).is_dir():
        return f"{kind}:{folder}"
    return str(recorded["name"])


def weights_sha256(network: nn.Module) -> str:
    """Return the SHA-256 of the names, shapes and float32 values of all weights.

    It is the same for every file format.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().float().contiguous().cpu().numpy().data)
    return digest.hexdigest()


@contextmanager
def explain_failures(model: str) -> Iterator[None]:
    """Turn the errors of libraries and hubs, which have no common base class, into one kind.

    Raises:
        EncoderError: if loading the model fails.
    """
    try:
        with quiet():
            yield
    except C3Error:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {reason_of(error)}"
        raise EncoderError(
            f"The model {model} could not be loaded: {reason}", remedy=OFFLINE_REMEDY
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Hide log lines and warnings of libraries that load models: they don't help users."""
    previous = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)


def _parse_name(model: str) -> tuple[str, str | None]:
    """Return what open_clip takes for a model: an architecture, and a tag or a file of weights.

    The architecture may also be a name with a schema, such as ``hf-hub:``.

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
    """Refuse an unknown model, or weights that cannot be loaded, within seconds.

    The clients of the hubs would try for a minute.

    Args:
        model: a name.
        weights: whether the trained weights are needed.

    Raises:
        EncoderError: with the names that are close, or the server that does not answer.
    """
    architecture, pretrained = _parse_name(model)
    if architecture.startswith(_LOCAL):
        return
    from huggingface_hub import constants

    source: Mapping[str, Any]
    if architecture.startswith(HUB):
        repository = architecture.removeprefix(HUB).partition("@")[0]
        source = {"hf_hub": f"{repository}/"}
    else:
        import open_clip  # takes seconds

        architectures: list[str] = [*open_clip.list_models(), DEFAULT_MODEL]
        if architecture not in architectures:
            close_names = difflib.get_close_matches(architecture, architectures, n=3)
            hint = f"Did you mean {' or '.join(close_names)}? " if close_names else ""
            raise EncoderError(f"There is no model {model!r}.", remedy=hint + _NAMES)
        if not weights:
            return
        tags = open_clip.list_pretrained_tags_by_model(architecture)
        if pretrained not in tags:
            if Path(pretrained or "").is_file():
                return
            close_tags = difflib.get_close_matches(
                pretrained or "", tags, n=_TAGS_SHOWN, cutoff=0.4
            )
            shown = list(dict.fromkeys([*close_tags, *tags]))[:_TAGS_SHOWN]
            lines = ["Add pretrained weights, or use random weights with --random-init SEED:"]
            lines += [f"  {architecture}/{tag}" for tag in shown]
            lines.append(f"To list them all: c3 models {architecture}/")
            raise EncoderError(
                f"{model!r} does not specify pretrained weights of {architecture} or an existing "
                f"file.",
                remedy="\n".join(lines),
            )
        source = open_clip.get_pretrained_cfg(architecture, pretrained)

    # Weights that are not on this machine are downloaded, if their server answers
    server = str(constants.ENDPOINT if source.get("hf_hub") else source.get("url"))
    if weights and not _is_local(source) and not is_reachable(server):
        raise EncoderError(
            f"The weights of {model} are not on this machine, and they cannot be downloaded: "
            f"{server} does not answer.",
            remedy=OFFLINE_REMEDY,
        )


@explain_missing("The list of models")
def list_models(containing: str = "", *, here: bool = False) -> list[dict[str, Any]]:
    """List the models that can be loaded by name, the bundled one first.

    Args:
        containing: List only names that contain this text, for example ViT-B-32.
        here: List only models whose weights are on this machine.

    Returns:
        For each model ``name``, ``dim`` (of its embeddings), ``image_size`` (pixels),
        ``context_length`` (tokens), ``source`` (``bundled``, or where the weights come from) and
        ``here`` (whether they are on this machine).

    Raises:
        EncoderError: if there is no such model.
    """
    import open_clip  # takes seconds

    bundled = json.loads((C3_MINI / "open_clip_config.json").read_text(encoding="utf-8"))
    models = [_listed_model(DEFAULT_MODEL, bundled["model_cfg"], "bundled", here=True)]
    for architecture, tag in open_clip.list_pretrained():
        weights = open_clip.get_pretrained_cfg(architecture, tag)
        config = open_clip.get_model_config(architecture)
        if weights and config is not None:
            source = str(weights.get("hf_hub") or weights.get("url") or "").rstrip("/")
            name = f"{architecture}/{tag}"
            models.append(_listed_model(name, config, source, here=_is_local(weights)))
    selected = [
        listed
        for listed in models
        if containing.lower() in listed["name"].lower() and (listed["here"] or not here)
    ]
    if not selected:
        where = " with weights on this machine" if here else ""
        raise EncoderError(
            f"No model{where} has {containing!r} in its name.",
            remedy="`c3 models` lists all names. Use local-dir:PATH for a folder, and "
            "hf-hub:ORG/NAME for a repository on the hub.",
        )
    return selected


def model_table(models: Sequence[Mapping[str, Any]]) -> Table:
    """Return the models of `list_models` as a table, one row each."""
    rows = []
    for model in models:
        image = f"{model['image_size']} px"
        text = f"{model['context_length']} tokens"
        rows.append([model["name"], str(model["dim"]), image, text, "yes" if model["here"] else ""])
    return Table(["model", "d", "image", "text", "here"], rows)


def _listed_model(
    name: str, config: Mapping[str, Any], source: str, *, here: bool
) -> dict[str, Any]:
    """Return a row of `list_models`; ``config`` is open_clip's, of the architecture."""
    return {
        "name": name,
        "dim": config["embed_dim"],
        "image_size": int(np.max(config["vision_cfg"].get("image_size", 224))),
        "context_length": config["text_cfg"].get("context_length", 77),
        "source": source,
        "here": here,
    }


def _is_local(weights: Mapping[str, Any]) -> bool:
    """Return whether weights are on this machine; open_clip describes them by url and hf_hub."""
    from huggingface_hub import try_to_load_from_cache

    address = str(weights.get("url") or "")
    downloaded_name = address.rsplit("/", 1)[-1]
    if address and (_DOWNLOADS.expanduser() / downloaded_name).is_file():
        return True
    repository, _, file = str(weights.get("hf_hub") or "").rpartition("/")
    if not repository:
        return False
    candidates = (file,) if file else _HUB_FILES
    return any(isinstance(try_to_load_from_cache(repository, name), str) for name in candidates)
