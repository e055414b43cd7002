"""MAGIC (Su et al., 2022): the encoder scores each word of a language model again.

Of the k tokens that the decoder finds likeliest, the one is taken that has the highest

    (1 - alpha) p(v | text) - alpha max_j cos(h_v, h_j) + beta softmax_k(scale cos(image, text + v))

The first term is the decoder's probability, the second penalises hidden states that repeat earlier ones, the third is
the encoder's view of the text so far. Published settings: k = 45, alpha = 0.1, beta = 2. It costs k text encodings per
word.

Shapes: B captions, K candidates, W width, V vocabulary.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ...arrays import Matrix
from ..generation import GenerationConfig
from ..language_model import Decoder
from ..model import allowed
from ..tokenizer import CaptionTokenizer
from .steering import TextEncoder, encode_once


@torch.inference_mode()
def write_magic(
    model: Decoder,
    tokenizer: CaptionTokenizer,
    batch: Tensor,
    images: Matrix,
    config: GenerationConfig,
    encoder: TextEncoder,
) -> list[list[int]]:
    """Write captions of a batch of embeddings (B, d) and of their images, unit vectors (B, d); see the module."""
    limit = model.config.max_tokens
    captions: list[list[int]] = [[] for _ in range(len(batch))]
    rows = list(range(len(batch)))  # those that are not finished
    logits, hidden, cache = model.prefill(batch)
    earlier = F.normalize(hidden.float(), dim=-1)[:, None]  # (B, steps so far, W)
    for step in range(limit):
        probabilities = allowed(model, logits).softmax(-1)
        likely, tokens = probabilities.topk(min(config.candidates, probabilities.shape[1]), dim=-1)  # (B, K)
        B, K = tokens.shape
        texts = [
            tokenizer.decode([*captions[row], token])
            for row, line in zip(rows, tokens.tolist(), strict=True)
            for token in line
        ]
        encoded = encode_once(encoder, texts).reshape(B, K, -1)
        similar = torch.from_numpy(np.einsum("bd,bkd->bk", images[rows], encoded)).to(likely.device)  # (B, K)
        # every candidate is run one position further: its hidden state is needed, and its scores if it is taken
        cache.select(torch.arange(B, device=batch.device).repeat_interleave(K))
        logits, hidden = model.decode_step(tokens.flatten(), cache)  # (B * K, V), (B * K, W)
        states = F.normalize(hidden.float(), dim=-1).view(B, K, -1)  # (B, K, W)
        repeated = torch.einsum("bkw,bsw->bks", states, earlier).amax(-1)  # (B, K)
        view = (config.similarity_scale * similar).softmax(-1)
        score = (1 - config.alpha) * likely - config.alpha * repeated + config.beta * view  # (B, K)
        best = score.argmax(-1)  # (B,)
        chosen = tokens.gather(1, best[:, None])[:, 0]  # (B,)
        going = chosen != model.end_id
        kept = going.nonzero()[:, 0]
        for i in kept.tolist():
            captions[rows[i]].append(int(chosen[i]))
        if step + 1 == limit or not len(kept):
            break
        taken = (torch.arange(B, device=batch.device) * K + best)[kept]
        cache.select(taken)
        logits = logits[taken]
        earlier = torch.cat([earlier, states[torch.arange(B), best][:, None]], dim=1)[kept]
        rows = [rows[i] for i in kept.tolist()]
    return captions
