from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from c3tools.corpus.reading import assign_keys
from c3tools.corpus.splits import describe_rule, kept_splits, split_order, splits_by_hash, splits_of


def test_the_names_and_the_order_of_splits() -> None:
    said = "train train2017 restval validation val2014 dev TEST unused".split()
    assert splits_of(said, said) == "train train train val val val test unused".split()
    assert sorted(["other", "test", "a", "val", "train"], key=split_order) == ["train", "val", "test", "a", "other"]


def test_without_a_split_the_key_decides_and_always_the_same() -> None:
    # written down: a change here would move the rows of every store without splits
    assert splits_of([f"photo{i}" for i in (6, 7, 8)], ["", None, ""]) == ["train", "val", "train"]
    shares = splits_by_hash([*map(str, range(20_000))])
    assert [shares.count(name) for name in ("train", "val")] == pytest.approx([16_000, 2000], abs=200)


@pytest.mark.parametrize(
    ("names", "kept"),
    [
        ({"train"}, None), ({"train", "base", "val"}, None), (set(), None), ({"test"}, None), ({"val", "test"}, None),
        ({"base", "modifier"}, {"val", "test"}), ({"base", "val"}, {"val", "test"}),
        ({"unused", "test"}, {"val", "test"}), ({"val"}, set()),
    ],
)  # fmt: skip
def test_without_rows_named_train_the_others_are_split_by_hash(names: set[str], kept: set[str] | None) -> None:
    assert kept_splits(names) == kept
    for name in names:
        stays = kept is None or name in kept
        assert splits_of(["photo7"], [name], kept_splits(names)) == ([name] if stays else splits_by_hash(["photo7"]))
    sentence = describe_rule(names)
    assert (sentence is None) == (kept is None)
    if sentence:
        assert "80 % train, 10 % val, 10 % test" in sentence and all(name in sentence for name in names)


@given(st.lists(st.text("ab.", min_size=1, max_size=4), unique=True))
def test_keys_are_unique_for_any_unique_names(names: list[str]) -> None:
    assert len({*assign_keys(names)}) == len(names)
