"""Names of models, their weights, and what is loaded."""

from __future__ import annotations

import logging
import pickle
import re
import socket
import threading
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from c3tools.encoders import load_encoder, networks, resolve_encoder
from c3tools.errors import EncoderError
from c3tools.identity import UNKNOWN_MODEL
from c3tools.io import hub
from tests.conftest import Messages
from tests.connect.photos import save_tiny_clip
from tests.golden import recorded


@pytest.fixture(autouse=True)
def without_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for proxy in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)


def test_random_weights_are_those_of_the_seed_and_leave_the_callers_random_state_alone(
    tmp_path: Path,
) -> None:
    name = save_tiny_clip(tmp_path / "m")
    before, seeds = torch.get_rng_state(), [1, 1, 2, 10**30, None]
    found = [load_encoder(name, random_init=seed, backend="torch").identity for seed in seeds]
    assert torch.equal(torch.get_rng_state(), before)
    assert not logging.root.manager.disable
    assert [identity["random_init"] for identity in found] == seeds
    assert found[0] == found[1]
    assert len({identity["weights_sha256"] for identity in found}) == 4
    # needs no weights
    identity = networks.load_network("ViT-S-32-alt", random_init=0).describe().identity
    assert (identity["name"], identity["pretrained"], identity["random_init"]) == (
        "ViT-S-32-alt",
        None,
        0,
    )


def test_a_pickled_encoder_is_loaded_again(tmp_path: Path) -> None:
    name = save_tiny_clip(tmp_path / "m")
    encoder = load_encoder(name, random_init=3, backend="torch", precision="fp32", device="cpu")
    assert repr(encoder) == f"Encoder({name!r}, dim={encoder.dim}, cpu, fp32, torch)"
    pickled = pickle.dumps(encoder)
    assert len(pickled) < 2000
    again = pickle.loads(pickled)
    assert repr(again) == repr(encoder)
    assert again.identity == encoder.identity
    assert np.array_equal(again.encode_texts(["a dog"]), encoder.encode_texts(["a dog"]))


def test_an_unknown_name_is_refused_with_the_close_ones() -> None:
    for name, named in {
        "ViT-B-33/openai": "ViT-B-33/openai.*ViT-B-32",
        "c3mini": "c3mini.*c3-mini",
        "ViT-B-32": "ViT-B-32/openai",
        "ViT-B-32/opnai": "opnai.*SEED:\n  ViT-B-32/openai\n.*c3 models ViT-B-32/",
        "local-dir:nowhere": "nowhere.*open_clip_config.json",
    }.items():
        with pytest.raises(EncoderError, match=f"(?s){named}") as caught:
            load_encoder(name)
        assert len(str(caught.value.remedy).splitlines()) <= 10


def test_weights_that_cannot_be_loaded_are_an_error_with_the_bundled_model_as_a_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, asked = save_tiny_clip(tmp_path / "m"), list[str]()

    def reached(architecture: str, pretrained: str, **options: object) -> None:
        asked.append(f"{architecture}/{pretrained}")
        raise RuntimeError

    (tmp_path / "m" / "open_clip_model.safetensors").write_bytes(b"no weights")
    with pytest.raises(EncoderError, match="c3-mini"):
        load_encoder(name)
    # its clients would try for a minute
    monkeypatch.setattr(open_clip, "create_model_and_transforms", reached)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:1")
    for name in ("ViT-B-32/openai", "hf-hub:org/name"):
        with pytest.raises(EncoderError, match=r"(?s)http://127\.0\.0\.1:1.*c3-mini"):
            load_encoder(name)
    assert not asked
    # weights on this machine need no server
    monkeypatch.setattr(networks, "is_reachable", pytest.fail)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *arguments: "a file")
    (tmp_path / "weights.pt").touch()
    names = ["ViT-B-32/openai", f"ViT-B-32/{tmp_path / 'weights.pt'}"]
    for name in names:
        with pytest.raises(EncoderError, match=re.escape(name)):
            load_encoder(name)
    assert asked == names


def test_a_server_answers_directly_or_through_a_proxy_and_a_look_up_that_hangs_is_no_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        assert hub.is_reachable(address)
        assert not hub.is_reachable("http://127.0.0.1:1")
        monkeypatch.setenv("HTTPS_PROXY", address)
        assert hub.is_reachable("http://127.0.0.1:1")
        monkeypatch.delenv("HTTPS_PROXY")
    ended = threading.Event()

    def hang(*arguments: object) -> None:
        ended.wait(10)
        raise OSError

    monkeypatch.setattr(socket, "create_connection", hang)
    monkeypatch.setattr(hub, "_PATIENCE", 0.05)
    assert not hub.is_reachable("https://example.org")
    ended.set()


def test_an_encoder_is_the_one_asked_for_else_the_recorded_one_else_the_bundled_one(
    tmp_path: Path,
) -> None:
    name, listener = save_tiny_clip(tmp_path / "m"), Messages()
    recorded = load_encoder(name, random_init=1, backend="torch").identity
    options: dict[str, Any] = {"recorded": recorded, "backend": "torch", "reporter": listener}
    own = resolve_encoder(name, **options).identity
    assert own["random_init"] is None
    assert resolve_encoder(**options).identity == recorded
    assert resolve_encoder(**options, precision="bf16").compute.precision == "bf16"
    assert not listener.texts
    assert resolve_encoder(reporter=listener).identity.name == "c3-mini"
    assert "c3-mini" in listener.texts[0]
    weights = tmp_path / "m" / "open_clip_model.safetensors"
    state = load_file(weights)
    save_file({**state, "logit_scale": state["logit_scale"] + 1}, weights)
    with pytest.raises(EncoderError, match=own["weights_sha256"][:12]):  # which are no longer there
        resolve_encoder(recorded=own, backend="torch")


def test_models_are_listed_with_their_sizes_and_what_is_on_this_machine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".cache" / "clip").mkdir(parents=True)
    (tmp_path / ".cache" / "clip" / "ViT-L-14.pt").touch()
    cached = "timm/vit_large_patch14_clip_336.openai/open_clip_model.safetensors"
    cached += " timm/ViT-B-16-SigLIP-512/open_clip_pytorch_model.bin"
    found = lambda *asked: "file" if "/".join(asked) in cached else None  # noqa: E731
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", found)
    asked = "", "ViT-L-14/OpenAI", "ViT-L-14-336/openai", "roberta-ViT-B-32", "ViT-B-16-SigLIP-512"
    value = [networks.list_models(name)[0] for name in asked]
    recorded(Path(__file__).parent / "golden/models.json", value)
    here = {row["name"] for row in networks.list_models(here=True)}
    assert {row["name"] in here for row in value if row["here"]} == {True}
    with pytest.raises(EncoderError, match=r"on this machine.*'roberta'"):
        networks.list_models("roberta", here=True)


def test_embeddings_of_an_unnamed_model_encode_no_queries() -> None:
    with pytest.raises(EncoderError, match="without the name of their model"):
        resolve_encoder(recorded={"name": UNKNOWN_MODEL})


def test_a_checkpoint_of_a_training_is_loaded_by_its_architecture(tmp_path: Path) -> None:
    trained = open_clip.create_model("ViT-S-32-alt").eval()
    state = {f"module.{name}": weight for name, weight in trained.state_dict().items()}
    torch.save({"epoch": 1, "state_dict": state}, tmp_path / "epoch_1.pt")
    name = f"ViT-S-32-alt/{tmp_path / 'epoch_1.pt'}"

    encoder = load_encoder(name, backend="torch", precision="fp32", device="cpu")

    tokens = open_clip.get_tokenizer("ViT-S-32-alt")(["a dog"])
    with torch.inference_mode():
        expected = trained.encode_text(tokens, normalize=True)
    np.testing.assert_allclose(encoder.encode_texts(["a dog"]), expected, atol=1e-5)
    assert encoder.identity["pretrained"] == str(tmp_path / "epoch_1.pt")
    assert len(encoder.identity["weights_sha256"]) == 64
