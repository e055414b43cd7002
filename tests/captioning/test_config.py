from __future__ import annotations

import pytest

from c3tools.captioning import SIZES, LanguageModelSize, Size, TrainingConfig, load_size
from c3tools.errors import DecoderError


def test_settings_are_changed_by_name_whether_of_the_architecture_or_of_the_training() -> None:
    changed = load_size("tiny", ["dropout=0.2", "prefix_length=6", "word_dropout=0.15", "epochs=9", "ema=0.99"])
    assert isinstance(changed, Size)
    assert (changed.dropout, changed.prefix_length, changed.width) == (0.2, 6, 192)
    assert (changed.training.word_dropout, changed.training.epochs, changed.training.ema) == (0.15, 9, 0.99)
    assert changed.training.learning_rate == SIZES["tiny"].training.learning_rate
    paper = load_size("paper", ["model=./mine", "frozen=true", "mapper=transformer"])
    assert isinstance(paper, LanguageModelSize)
    assert (paper.model, paper.frozen, paper.mapper) == ("./mine", True, "transformer")
    assert load_size("tiny") == SIZES["tiny"]
    both = load_size("tiny", ["width=256", "heads=4"])  # neither goes with the other's value of the size
    assert isinstance(both, Size)
    assert (both.width, both.heads) == (256, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["colour=red"], "has no setting 'colour=red'"),
        (["dropout"], "has no setting 'dropout'"),
        (["training=1"], "has no setting 'training=1'"),
        (["seed=1"], "has no setting 'seed=1'"),
        (["layers=two"], "layers needs a value of type int, for example 2, not 'two'"),
        (["decay=steps"], "There is no decay 'steps'"),
        (["word_dropout=1"], "word_dropout must be at least 0 and below 1"),
        (["learning_rate=0"], "learning_rate must be greater than 0, not 0.0"),
        (["learning_rate=1e400"], "learning_rate must be a finite number, not inf"),
        (["dropout=nan"], "dropout must be at least 0 and below 1, not nan"),
        (["dropout=-1"], "dropout must be at least 0 and below 1, not -1.0"),
        (["beta2=1"], "beta2 must be at least 0 and below 1, not 1.0"),
        (["weight_decay=-0.1"], "weight_decay must be at least 0, not -0.1"),
        (["clip_norm=nan"], "clip_norm must be at least 0, not nan"),
        (["warmup=2"], "warmup must be between 0 and 1, not 2.0"),
        (["prefix_length=-1"], "prefix_length must be at least 0, not -1"),
        (["heads=5"], "The width 192 cannot be divided into 5 heads"),
    ],
)
def test_wrong_settings_are_refused(changes: list[str], message: str) -> None:
    with pytest.raises(DecoderError, match=message):
        load_size("tiny", changes)


def test_the_remedy_lists_the_settings() -> None:
    with pytest.raises(DecoderError, match=r"batch_size, beta2, clip_norm, contrastive_margin, decay, dropout"):
        load_size("tiny", ["x=1"])
    with pytest.raises(DecoderError, match="frozen needs a value of type bool"):
        load_size("paper", ["frozen=perhaps"])
    with pytest.raises(DecoderError, match="max_tokens must be greater than 0"):
        load_size("paper", ["max_tokens=0"])
    with pytest.raises(DecoderError, match="epochs must be greater than 0"):
        TrainingConfig(epochs=0)
