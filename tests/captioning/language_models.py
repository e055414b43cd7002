"""A language model as its users have one: a folder that save_pretrained wrote. Tiny, with random weights."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

END = "<|endoftext|>"


def save_tiny_gpt2(folder: Path, captions: Iterable[str]) -> Path:
    """A GPT-2 of 2 layers and width 16 with a byte-level tokenizer learned from ``captions``."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    # as in GPT-2, id 0 is a real token and end-of-text is the last one
    trainer = trainers.BpeTrainer(vocab_size=299, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(captions, trainer)
    tokenizer.add_special_tokens([END])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END)
    torch.manual_seed(0)
    end_id = fast.convert_tokens_to_ids(END)
    config = GPT2Config(
        vocab_size=len(fast), n_positions=64, n_embd=16, n_layer=2, n_head=2, bos_token_id=end_id, eos_token_id=end_id
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder
