"""Tiny models of the kinds that people use beside CLIP: their towers, tokenizers and pooling, with random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, XLMRobertaConfig

DIM = 64
LENGTH = 16
_WORDS = ("a dog on the beach", "ein Hund am Strand", "un chien sur la plage", "a red bus in the snow")


def _tokenizer(folder: Path, template: str, pad: str) -> int:
    """Save a tokenizer of transformers, and return the size of its vocabulary."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<pad>", "</s>", "<unk>", "<s>"]
    tokenizer.train_from_iterator(_WORDS, trainers.BpeTrainer(vocab_size=120, special_tokens=special))
    ends = [("</s>", special.index("</s>")), ("<s>", special.index("<s>"))]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=ends)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=pad, eos_token="</s>", bos_token="<s>", unk_token="<unk>"
    )
    fast.save_pretrained(folder)
    return len(fast)


def _text(vocabulary: int, **changes: Any) -> dict[str, Any]:
    return {"context_length": LENGTH, "vocab_size": vocabulary, "width": DIM, "heads": 2, "layers": 1, **changes}


def _siglip(folder: Path) -> dict[str, Any]:
    """SigLIP: texts are padded with the end token and read at the last position; images are pooled by attention."""
    text = {
        "hf_tokenizer_name": "in the folder",
        "tokenizer_kwargs": {"clean": "canonicalize"},
        "no_causal_mask": True,
        "proj_bias": True,
        "pool_type": "last",
        "norm_kwargs": {"eps": 1e-6},
        "act_kwargs": {"approximate": "tanh"},  # of SigLIP 2
    }
    vision = {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "map", "timm_proj": "none"}
    return {
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": vision,
        "text_cfg": _text(_tokenizer(folder, "$A </s>", "</s>"), **text),
    }


def _mobileclip(folder: Path) -> dict[str, Any]:
    """MobileCLIP: a convolutional image tower, and a text tower that looks in both directions."""
    vision = {"image_size": 64, "timm_model_name": "fastvit_t8", "timm_pool": "avg", "timm_proj": None}
    return {"custom_text": True, "vision_cfg": vision, "text_cfg": _text(49408, no_causal_mask=True)}


def _multilingual(folder: Path) -> dict[str, Any]:
    """XLM-RoBERTa: a text tower of transformers, averaged over the tokens that are no padding."""
    tower = folder / "tower"
    vocabulary = _tokenizer(folder, "<s> $A </s>", "<pad>")
    XLMRobertaConfig(
        vocab_size=vocabulary,
        hidden_size=DIM,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=DIM,
        max_position_embeddings=LENGTH + 4,
        pad_token_id=0,
        bos_token_id=3,
        eos_token_id=1,
    ).save_pretrained(tower)
    vision = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
    text = {
        "context_length": LENGTH,
        "hf_model_name": str(tower),
        "hf_tokenizer_name": str(folder),
        "hf_pooler_type": "mean_pooler",
        "hf_proj_type": "mlp",
    }
    return {"vision_cfg": vision, "text_cfg": text}


KINDS = {"siglip": _siglip, "mobileclip": _mobileclip, "multilingual": _multilingual}


def other_model(folder: Path, kind: str, *, weights: bool = True) -> str:
    """Write a model of a kind of `KINDS` to a folder, with weights or without, and return its name."""
    folder.mkdir(parents=True)
    config = {"embed_dim": DIM, **KINDS[kind](folder)}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    if weights:
        torch.manual_seed(71)
        model = open_clip.create_model(f"local-dir:{folder}", load_weights=False, pretrained_hf=False)
        torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    return f"local-dir:{folder}"
