from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from c3tools.captioning import CaptionDecoder, DecoderConfig, load_size
from c3tools.errors import DecoderError


@given(rows=st.integers(1, 4), seed=st.integers(0, 1000))
@settings(max_examples=15, deadline=None)
def test_cached_and_whole_computation_agree(rows: int, seed: int) -> None:
    torch.manual_seed(seed)
    config = DecoderConfig(dim=5, vocab_size=9, width=12, layers=2, heads=3, prefix_length=2, max_tokens=7, dropout=0)
    model = CaptionDecoder(config).eval()
    x, tokens = torch.randn(rows, 5), torch.randint(1, 9, (rows, 7))
    with torch.no_grad():
        whole, _ = model(x, tokens)
        first, _, cache = model.prefill(x)
        steps = [first, *(model.decode_step(tokens[:, t], cache)[0] for t in range(6))]
    torch.testing.assert_close(torch.stack(steps, dim=1), whole, rtol=1e-4, atol=1e-5)


def test_parameters_are_counted_by_hand() -> None:
    c = DecoderConfig(dim=10, vocab_size=50, width=24, layers=3, heads=4, prefix_length=4, max_tokens=20)
    w, hidden = c.width, 2 * c.width
    prefix = (10 * hidden + hidden) + (hidden * 4 * w + 4 * w)
    block = (w * 3 * w + 3 * w) + (w * w + w) + (w * 4 * w + 4 * w) + (4 * w * w + w) + 4 * w
    expected = prefix + 50 * w + (4 + 20) * w + 3 * block + 2 * w  # tied: the output layer adds nothing
    assert sum(p.numel() for p in CaptionDecoder(c).parameters()) == expected


def test_what_cannot_be_built_is_refused() -> None:
    with pytest.raises(DecoderError, match="'huge'"):
        load_size("huge")
    with pytest.raises(DecoderError, match=r"30 .* 4 heads"):
        DecoderConfig(dim=4, vocab_size=9, width=30, heads=4)
