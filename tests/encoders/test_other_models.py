"""SigLIP, SigLIP 2, MobileCLIP and a multilingual model: tiny, with their towers, tokenizers and
pooling."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

from c3tools.encoders import load_encoder

hf = pytest.importorskip("transformers", reason="the extra hf is not installed")

TEXTS = ["a dog", "a red bus in the snow", "a dog on the beach " * 10, "ein Hund am Strand"]
DIM = 64
LENGTH = 16
TEXT = {"context_length": LENGTH, "width": DIM, "heads": 2, "layers": 1}


def _tokenizer(folder: Path, template: str, pad: str) -> int:
    """Save a tokenizer of transformers, and return the size of its vocabulary."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<pad>", "</s>", "<unk>", "<s>"]
    tokenizer.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=120, special_tokens=special)
    )
    ends = [("</s>", 1), ("<s>", 3)]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=ends)
    named = {"pad_token": pad, "eos_token": "</s>", "bos_token": "<s>", "unk_token": "<unk>"}
    fast = hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)
    fast.save_pretrained(folder)
    return len(fast)


def _siglip(folder: Path) -> dict[str, Any]:
    """SigLIP: texts are padded with the end token and read at the last position; images are pooled
    by attention."""
    text: dict[str, Any] = {
        **TEXT,
        "vocab_size": _tokenizer(folder, "$A </s>", "</s>"),
        "pool_type": "last",
    }
    text |= {"hf_tokenizer_name": "in the folder", "tokenizer_kwargs": {"clean": "canonicalize"}}
    text |= {"no_causal_mask": True, "proj_bias": True, "norm_kwargs": {"eps": 1e-6}}
    text["act_kwargs"] = {"approximate": "tanh"}  # of SigLIP 2
    vision = {
        "image_size": 160,
        "timm_model_name": "test_vit",
        "timm_pool": "map",
        "timm_proj": "none",
    }
    return {"init_logit_bias": -10, "custom_text": True, "vision_cfg": vision, "text_cfg": text}


def _mobileclip(folder: Path) -> dict[str, Any]:
    """MobileCLIP: a convolutional image tower, and a text tower that looks in both directions."""
    vision = {
        "image_size": 64,
        "timm_model_name": "fastvit_t8",
        "timm_pool": "avg",
        "timm_proj": None,
    }
    text = {**TEXT, "vocab_size": 49408, "no_causal_mask": True}
    return {"custom_text": True, "vision_cfg": vision, "text_cfg": text}


def _multilingual(folder: Path) -> dict[str, Any]:
    """XLM-RoBERTa: a text tower of transformers, averaged over the tokens that are no padding."""
    tower = folder / "tower"
    config = {
        "vocab_size": _tokenizer(folder, "<s> $A </s>", "<pad>"),
        "hidden_size": DIM,
        "intermediate_size": DIM,
    }
    config |= {
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": LENGTH + 4,
    }
    hf.XLMRobertaConfig(**config, pad_token_id=0, bos_token_id=3, eos_token_id=1).save_pretrained(
        tower
    )
    vision = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
    text = {"context_length": LENGTH, "hf_model_name": str(tower), "hf_tokenizer_name": str(folder)}
    return {
        "vision_cfg": vision,
        "text_cfg": {**text, "hf_pooler_type": "mean_pooler", "hf_proj_type": "mlp"},
    }


KINDS = {"siglip": _siglip, "mobileclip": _mobileclip, "multilingual": _multilingual}


def other_model(folder: Path, kind: str, *, weights: bool = True) -> str:
    """Write a model of a kind of `KINDS` to a folder, with weights or without, and return its
    name."""
    folder.mkdir(parents=True)
    config = {"embed_dim": DIM, **KINDS[kind](folder)}
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": {}})
    )
    if weights:
        torch.manual_seed(71)
        model = open_clip.create_model(
            f"local-dir:{folder}", load_weights=False, pretrained_hf=False
        )
        torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    return f"local-dir:{folder}"


@pytest.mark.parametrize("kind", KINDS)
def test_padding_is_read_as_in_training_and_converted_towers_agree(
    kind: str, tmp_path: Path
) -> None:
    name = other_model(tmp_path / "model", kind)
    exact, converted = (
        load_encoder(name, backend=each, precision="fp32") for each in ("torch", "openvino")
    )
    assert not exact.trims_texts
    tokens = exact.tokenise(TEXTS)
    assert tokens.shape == (len(TEXTS), LENGTH)
    alone = np.concatenate([exact.encode_texts([text]) for text in TEXTS])
    np.testing.assert_allclose(exact.encode_texts(TEXTS), alone, atol=1e-6)
    assert exact.truncated(TEXTS, tokens).tolist() == [False, False, True, False]
    pixels = np.random.default_rng(0).integers(0, 255, (50, 40, 3), np.uint8)
    np.testing.assert_allclose(converted.encode_texts(TEXTS), exact.encode_texts(TEXTS), atol=1e-5)
    np.testing.assert_allclose(
        converted.encode_images([pixels]), exact.encode_images([pixels]), atol=1e-5
    )


@pytest.mark.parametrize("kind", KINDS)
def test_random_weights_need_no_file_and_no_network(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hf.AutoModel, "from_pretrained", pytest.fail)
    name = other_model(tmp_path / "model", kind, weights=False)
    drawn = [
        load_encoder(name, random_init=n, backend="torch", precision="fp32").identity
        for n in (1, 1, 2)
    ]
    one, same, other = (identity["weights_sha256"] for identity in drawn)
    assert one == same != other
