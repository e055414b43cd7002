from __future__ import annotations

import copy
import json
import socket
import subprocess
import sys
import threading
from pathlib import Path

import huggingface_hub
import open_clip
import pytest
import torch

from c3tools.encoders import ModelName, load_encoder, models, resolve_encoder
from c3tools.encoders.loading import weights_sha256
from c3tools.errors import EncoderError
from c3tools.io import hub
from c3tools.reporter import Reporter


def local_model(folder: Path, **text_changes: object) -> str:
    """A tiny model with random weights, as a local folder."""
    vision = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
    text = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1, **text_changes}
    config = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
    folder.mkdir(parents=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    torch.manual_seed(71)
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    return f"local-dir:{folder}"


def test_random_weights_are_those_of_the_seed(tmp_path: Path) -> None:
    name = local_model(tmp_path / "m")
    one, same, other = (load_encoder(name, random_init=seed, backend="torch") for seed in (1, 1, 2))
    assert one.identity["weights_sha256"] == same.identity["weights_sha256"] != other.identity["weights_sha256"]
    assert one.identity["random_init"] == 1
    assert load_encoder(name, random_init=10**30, backend="torch").identity["random_init"] == 10**30
    assert one.identity["weights_sha256"] != load_encoder(name, backend="torch").identity["weights_sha256"]


def test_random_state_of_the_caller_is_left_alone(tmp_path: Path) -> None:
    name = local_model(tmp_path / "m")
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load_encoder(name, random_init=3, backend="torch")
    assert torch.equal(torch.rand(3), expected)


def test_a_recorded_model_whose_weights_changed_is_refused(tmp_path: Path) -> None:
    name = local_model(tmp_path / "m")
    identity = load_encoder(name, backend="torch").identity
    assert resolve_encoder(recorded=identity, backend="torch").identity == identity
    weights = tmp_path / "m" / "open_clip_pytorch_model.bin"
    state = torch.load(weights, weights_only=True)
    state["logit_scale"] += 1
    torch.save(state, weights)
    with pytest.raises(EncoderError, match="have changed"):
        resolve_encoder(recorded=identity, backend="torch")


def test_the_weights_hash_depends_on_every_value(tmp_path: Path) -> None:
    network = torch.nn.Linear(3, 2)
    digest = weights_sha256(network)
    assert digest == weights_sha256(copy.deepcopy(network))
    with torch.no_grad():
        network.bias[1] += 1e-6
    assert digest != weights_sha256(network)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ViT-B-33/openai", "Did you mean ViT-B-32"),
        ("c3mini", "Did you mean c3-mini"),
        ("ViT-B-32", "ViT-B-32/openai"),
        ("ViT-B-32/opnai", "no pretrained weights 'opnai'"),
        ("local-dir:nowhere", "open_clip_config.json is missing"),
    ],
)
def test_names_that_are_wrong(name: str, message: str) -> None:
    with pytest.raises(EncoderError, match=message):
        load_encoder(name)


def test_weights_that_cannot_be_fetched_name_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: object, **kwargs: object) -> None:
        raise RuntimeError("Failed to download weights\nfor tag 'openai'")

    monkeypatch.setattr(open_clip, "create_model_and_transforms", unreachable)
    monkeypatch.setattr(models, "answers", lambda address: True)
    with pytest.raises(EncoderError, match=r"(?s)ViT-B-32/openai could not be loaded.*c3-mini.*local-dir:"):
        load_encoder("ViT-B-32/openai")


@pytest.mark.parametrize("name", ["ViT-B-32/openai", "hf-hub:org/name"])
def test_weights_behind_a_server_that_does_not_answer_are_refused_at_once(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def asked(*args: object, **kwargs: object) -> None:
        raise AssertionError("open_clip was asked, and its clients try for a minute")

    monkeypatch.setattr(open_clip, "create_model_and_transforms", asked)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:1")
    for proxy in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    with pytest.raises(
        EncoderError, match=r"(?s)not on this machine.* downloaded: http://127.* does not answer.*c3-mini"
    ):
        load_encoder(name)


def test_a_name_look_up_that_hangs_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()

    def hang(*arguments: object) -> None:
        ended.wait(10)
        raise OSError

    monkeypatch.setattr(socket, "create_connection", hang)
    monkeypatch.setattr(hub, "_PATIENCE", 0.05)
    assert not hub.answers("https://example.org")
    ended.set()


def test_a_server_that_takes_connections_is_there_and_so_is_one_behind_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        for proxy in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.delenv(proxy, raising=False)
        assert hub.answers(address)
        assert not hub.answers("http://127.0.0.1:1")
        monkeypatch.setenv("HTTPS_PROXY", address)
        assert hub.answers("http://127.0.0.1:1")


def test_weights_on_this_machine_need_no_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def asked(address: str) -> bool:
        raise AssertionError("the server was asked")

    monkeypatch.setattr(models, "answers", asked)
    monkeypatch.setattr(models, "is_local", lambda weights: True)
    models.require_weights(ModelName.parse("ViT-B-32/openai"))
    (tmp_path / "weights.pt").touch()
    models.require_weights(ModelName.parse(f"ViT-B-32/{tmp_path / 'weights.pt'}"))
    models.require_weights(ModelName.parse("c3-mini"))


def test_an_unknown_tag_gets_a_short_list_with_the_closest_first() -> None:
    with pytest.raises(EncoderError) as caught:
        load_encoder("ViT-B-32/laion2b_s34b")
    lines = str(caught.value.remedy).splitlines()
    assert lines[:2] == ["Available:", "  ViT-B-32/laion2b_s34b_b79k"]
    assert len(lines) == 10
    more = len(open_clip.list_pretrained_tags_by_model("ViT-B-32")) - 8
    assert lines[-1] == f"and {more} more; list them with: c3 models ViT-B-32/"


def test_importing_the_rooms_of_the_encoder_imports_no_open_clip() -> None:
    code = "import sys, c3tools.embedding, c3tools.captioning, c3tools.index; print('open_clip' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_damaged_local_model(tmp_path: Path) -> None:
    name = local_model(tmp_path / "m")
    (tmp_path / "m" / "open_clip_pytorch_model.bin").write_bytes(b"no weights")
    with pytest.raises(EncoderError, match="could not be loaded"):
        load_encoder(name)


def test_model_names() -> None:
    assert ModelName.parse("ViT-B-32/a/file.pt") == ModelName("ViT-B-32/a/file.pt", "ViT-B-32", "a/file.pt")
    assert ModelName.parse("hf-hub:org/name").has_schema


def test_an_encoder_is_the_one_asked_for_else_the_recorded_one_else_the_bundled_one(tmp_path: Path) -> None:
    said: list[str] = []

    class Listener(Reporter):
        def message(self, text: str) -> None:
            said.append(text)

    name = local_model(tmp_path / "m")
    recorded = load_encoder(name, random_init=1, backend="torch").identity
    assert (
        resolve_encoder(name, recorded=recorded, backend="torch", reporter=Listener()).identity["random_init"] is None
    )
    assert resolve_encoder(recorded=recorded, backend="torch", reporter=Listener()).identity == recorded
    assert resolve_encoder(recorded=recorded, recorded_precision="bf16").compute.precision == "bf16"
    assert resolve_encoder(recorded=recorded, recorded_precision="bf16", precision="fp32").compute.precision == "fp32"
    assert not said
    assert resolve_encoder(recorded={}, backend="torch", reporter=Listener()).identity.name == "c3-mini"
    assert "bundled model c3-mini" in said[0]
