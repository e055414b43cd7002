"""Tiny models of transformers with random weights, saved with processor and tokenizer for sentence-transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

RATE = 8000  # of sounds, samples per second
LENGTH = 32  # tokens of a text, a character each, with start and end
_LAYERS = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
_SPECIAL = {"pad_token": "<pad>", "unk_token": "<unk>", "model_max_length": LENGTH}


def save_models(folder: Path) -> None:
    """Write the folders clip, siglip2, clap (audio and text) and text."""
    import torch
    import transformers as hf
    from tokenizers import Tokenizer, models, normalizers, processors

    torch.manual_seed(0)
    letters = ["<pad>", "<unk>", "<s>", "</s>", *map(chr, range(32, 127))]
    tokens = Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, [], unk_token="<unk>"))
    tokens.normalizer = normalizers.Lowercase()
    ends = [("<s>", 2), ("</s>", 3)]
    tokens.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=ends)
    tokenizer = hf.PreTrainedTokenizerFast(tokenizer_object=tokens, bos_token="<s>", eos_token="</s>", **_SPECIAL)
    ids = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    words: dict[str, Any] = {**_LAYERS, **ids, "vocab_size": len(letters), "max_position_embeddings": 2 * LENGTH}

    def save(name: str, model: Any, processor: Any) -> None:
        model.save_pretrained(folder / name)
        processor.save_pretrained(folder / name)

    pixels = {**_LAYERS, "image_size": 32, "patch_size": 8}
    clip = hf.CLIPConfig(text_config=words, vision_config=pixels, projection_dim=16)
    crop = {"height": 32, "width": 32}
    look = hf.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=crop)
    save("clip", hf.CLIPModel(clip), hf.CLIPProcessor(image_processor=look, tokenizer=tokenizer))

    patches = {**_LAYERS, "num_patches": 16, "patch_size": 16}
    siglip = hf.Siglip2Config(text_config={**words, "projection_size": 32}, vision_config=patches)
    look = hf.Siglip2ImageProcessor(patch_size=16, max_num_patches=16)
    save("siglip2", hf.Siglip2Model(siglip), hf.Siglip2Processor(image_processor=look, tokenizer=tokenizer))

    window = {"spec_size": 64, "num_mel_bins": 32, "window_size": 2}
    blocks = {
        "patch_embeds_hidden_size": 16,
        "hidden_size": 128,
        "depths": [1] * 4,
        "num_attention_heads": [1, 1, 2, 2],
    }
    clap = hf.ClapConfig(text_config=words, audio_config={**window, **blocks}, projection_dim=16)
    hear = hf.ClapFeatureExtractor(
        truncation="rand_trunc",
        feature_size=32,
        sampling_rate=RATE,
        max_length_s=1,
        fft_window_size=256,
        hop_length=80,
        frequency_max=4000,
    )
    save("clap", hf.ClapModel(clap), hf.ClapProcessor(feature_extractor=hear, tokenizer=tokenizer))

    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters[4:], *(f"##{letter}" for letter in letters[4:])]
    bert = hf.BertConfig(**{**words, "vocab_size": len(pieces)})
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    save("text", hf.BertModel(bert), hf.BertTokenizerFast(vocab=vocabulary, model_max_length=LENGTH))
