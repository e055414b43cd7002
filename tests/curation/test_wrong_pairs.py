"""Which pairs may not belong together, and how many."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import c3tools
from c3tools.curation import wrong_pairs
from c3tools.curation.wrong_pairs import PairCheck, ScoredPairs, check_pairs, unrelated_shares
from c3tools.errors import C3Error, StoreError
from c3tools.metrics.significance import share_interval
from c3tools.moments import unit_rows
from c3tools.store import Pairs, Rows, Store
from tests.conftest import build_store, make_store

IMAGES, DIM = 400, 24


def paired_store(
    path: Path, *, exchanged: int = 0, splits: list[str] | str = "train", noise: float = 0.6
) -> Store:
    """A store of pairs with a gap, of which the texts of the first images were exchanged."""
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(IMAGES, DIM))
    gap = np.zeros(DIM)
    gap[0] = 4
    image = shared + noise * rng.normal(size=shared.shape) + gap
    text = shared + noise * rng.normal(size=shared.shape) - gap
    text[:exchanged] = np.roll(text[:exchanged], 1, axis=0)
    image /= np.linalg.norm(image, axis=1, keepdims=True)
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    return make_store(path, image, text, split=splits)


@pytest.fixture(scope="module")
def check(tmp_path_factory: pytest.TempPathFactory) -> PairCheck:
    """The check of a store in which 40 of 400 texts were exchanged."""
    return check_pairs(paired_store(tmp_path_factory.mktemp("pairs") / "s", exchanged=40))


def test_exchanged_pairs_come_first(check: PairCheck) -> None:
    wrong = {f"text{number}" for number in range(40)}
    assert len(wrong.intersection(pair.key for pair in check.pairs[:40])) >= 36


def test_all_pairs_are_listed_once(check: PairCheck) -> None:
    assert {pair.key for pair in check.pairs} == {f"text{number}" for number in range(IMAGES)}
    assert len(check.pairs) == IMAGES


@pytest.mark.parametrize("exchanged", [0, 20, 40, 80])
def test_the_expected_share_is_that_of_exchanged_pairs(tmp_path: Path, exchanged: int) -> None:
    share = check_pairs(paired_store(tmp_path / "s", exchanged=exchanged)).shares[0]
    assert share.interval is not None
    assert share.interval[0] <= exchanged / IMAGES <= share.interval[1]
    assert share.share == pytest.approx(exchanged / IMAGES, abs=0.04)


def test_an_encoder_that_tells_pairs_badly_gives_a_bound(tmp_path: Path) -> None:
    """All pairs are right, and 22% look unrelated."""
    check = check_pairs(paired_store(tmp_path / "s", noise=1.9))
    below_median = np.mean([pair.z < check.exchanged[0] for pair in check.pairs])
    assert 2 * below_median > 0.2
    share = check.shares[0]
    assert share.at_most
    assert share.interval == (0, share.share)
    assert check.table().rows[0][2:] == (f"at most {share.share:.1%}", "")
    assert "only a bound can be given" in " ".join(check.explanation())


@pytest.mark.parametrize("exchanged", [0, IMAGES])
def test_an_encoder_that_tells_nothing_gives_no_share(tmp_path: Path, exchanged: int) -> None:
    """Texts without an image's content, and texts of other images: the scores are the same."""
    noise = 0.6 if exchanged else 1000
    check = check_pairs(paired_store(tmp_path / "s", exchanged=exchanged, noise=noise))
    (share,) = check.shares
    assert share.share is None
    assert share.interval is None
    assert check.to_dict()["look_unrelated"][0]["share"] is None
    assert check.table().rows[0][2:] == ("", "")
    assert "most are wrong, or this encoder cannot tell them" in " ".join(check.explanation())


def test_a_good_encoder_gives_a_share_though_most_pairs_are_exchanged(tmp_path: Path) -> None:
    (share,) = check_pairs(paired_store(tmp_path / "s", exchanged=280)).shares
    assert not share.at_most
    assert share.share == pytest.approx(0.7, abs=0.05)


@pytest.mark.parametrize(
    ("below_quartile", "between", "above", "kind"),
    [
        (20, 20, 290, "estimate"),
        (20, 10, 290, "estimate"),
        (8, 18, 200, "at most"),
        (100, 90, 20, "none"),
    ],
)
def test_the_share_is_of_pairs_below_the_median(
    below_quartile: int, between: int, above: int, kind: str
) -> None:
    """Of exchanged pairs from -50 to 50, the quartile is -25, the median 0 and q90 is 40."""
    middle = 400 - below_quartile - between - above
    z = np.repeat([-40.0, -10.0, 30.0, 45.0], [below_quartile, between, middle, above])
    none = np.zeros(400, np.int64)
    scored = ScoredPairs(z, z, none, none, np.linspace(-50, 50, 1001), 400)
    items = np.arange(400)
    (share,) = unrelated_shares(scored, np.full(400, "test", dtype=object), items)
    of_quartile = share_interval((z < -25).astype(float), items)
    of_median = share_interval((z < 0).astype(float), items)
    assert of_quartile is not None
    assert of_median is not None
    assert share.at_most == (kind == "at most")
    if kind == "none":
        assert share.share is None
    elif kind == "at most":
        assert share.interval == pytest.approx((0, 2 * of_median[1]))
    else:
        assert share.share is not None
        assert share.share == pytest.approx(2 * (below_quartile + between) / 400)
        low = min(4 * of_quartile[0], share.share)
        assert share.interval == pytest.approx((low, 2 * of_median[1]))


def test_captions_of_one_photo_count_together() -> None:
    """Half of 400 photos have unrelated captions, whose z are correlated: more photos have most of
    them above the quartile, but not more captions are."""
    rng = np.random.default_rng(0)
    of_photo = np.repeat(rng.normal(size=200), 5)
    unrelated = np.sqrt(0.5) * (of_photo + rng.normal(size=1000))
    z = np.concatenate([unrelated, np.full(1000, 6.0)])  # the ratio of the module is 1
    none = np.zeros(2000, np.int64)
    scored = ScoredPairs(z, z, none, none, rng.normal(size=20_000), 1000)
    items = np.repeat(np.arange(400), 5)
    (share,) = unrelated_shares(scored, np.full(2000, "train", dtype=object), items)
    assert not share.at_most
    assert share.interval is not None
    assert 0.3 < share.interval[0] < 0.5 < share.interval[1] < 0.6


@pytest.mark.parametrize("modality", ["image", "text"])
def test_one_row_for_all_items_is_refused(tmp_path: Path, modality: str) -> None:
    values = np.random.default_rng(0).normal(size=(40, DIM))
    rows = {"image": unit_rows(values), "text": unit_rows(values)}
    rows[modality][:] = 1 / np.sqrt(DIM)
    store = make_store(tmp_path / "s", rows["image"], rows["text"])
    with pytest.raises(StoreError, match=f"40 pairs in .* all have the same {modality} embedding"):
        check_pairs(store)


def test_z_is_in_standard_deviations_of_unrelated_rows(tmp_path: Path) -> None:
    """Compared with all cosines of each row with the rows of the other modality."""
    store = paired_store(tmp_path / "s")
    check = check_pairs(store)
    image, text = store.load("image").embeddings, store.load("text").embeddings
    image = image - image.mean(axis=0)
    text = text - text.mean(axis=0)
    image /= np.linalg.norm(image, axis=1, keepdims=True)
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    cosines = (image @ text.T).astype(np.float64)
    own = np.diag(cosines)
    of_image = (own - cosines.mean(axis=1)) / cosines.std(axis=1)
    of_text = (own - cosines.mean(axis=0)) / cosines.std(axis=0)
    expected = (of_image + of_text) / 2
    measured = {pair.key: pair.z for pair in check.pairs}
    values = [measured[f"text{number}"] for number in range(IMAGES)]
    assert np.corrcoef(values, expected)[0, 1] > 0.98
    assert np.mean(values) == pytest.approx(expected.mean(), rel=0.05)


def test_exchanged_pairs_of_the_store_itself_have_mean_0_and_deviation_1(
    check: PairCheck,
) -> None:
    median, deviation = check.exchanged
    assert median == pytest.approx(0, abs=0.15)
    assert deviation == pytest.approx(1, abs=0.1)


def test_the_rank_counts_the_other_texts_that_fit_better(check: PairCheck) -> None:
    by_key = {pair.key: pair for pair in check.pairs}
    assert by_key["text200"].rank == 1
    assert by_key["text200"].better is None
    assert by_key["text5"].rank > 1
    assert by_key["text5"].better == "text6"  # the text of image 5 was moved to image 6
    assert by_key["text39"].better == "text0"


def test_nothing_is_marked_by_default(check: PairCheck) -> None:
    assert check.left_out == 0


def test_a_fraction_of_the_train_pairs_is_marked(tmp_path: Path) -> None:
    splits = ["test" if number % 2 else "train" for number in range(IMAGES)]
    check = check_pairs(paired_store(tmp_path / "s", exchanged=40, splits=splits), mark_worst=0.05)
    marked = [pair for pair in check.pairs if pair.leave_out]
    assert len(marked) == 10  # of 200 train pairs
    assert all(int(pair.key.removeprefix("text")) % 2 == 0 for pair in marked)
    assert check.notes[-1].startswith(
        "200 of 400 pairs are not in train, so none of them can be marked"
    )
    command = f"c3 split --store {tmp_path}/s --fractions 1,0,0 -o {tmp_path}/s-all"
    assert check.notes[-1].endswith(command)


def test_pairs_of_all_splits_are_marked_on_demand(tmp_path: Path) -> None:
    splits = ["test" if number % 2 else "train" for number in range(IMAGES)]
    store = paired_store(tmp_path / "s", exchanged=40, splits=splits)
    check = check_pairs(store, mark_worst=0.05, mark_splits="all")
    assert [pair.leave_out for pair in check.pairs] == [True] * 20 + [False] * 380
    assert not any("--mark-splits" in note for note in check.notes)


def test_train_pairs_below_a_z_are_marked(tmp_path: Path) -> None:
    splits = ["test" if number % 2 else "train" for number in range(IMAGES)]
    check = check_pairs(paired_store(tmp_path / "s", exchanged=40, splits=splits), mark_below=1.0)
    for pair in check.pairs:
        is_train = int(pair.key.removeprefix("text")) % 2 == 0
        assert (pair.leave_out) == (is_train and pair.z < 1)


def test_shares_are_told_by_split(tmp_path: Path) -> None:
    splits = ["test" if number < 100 else "train" for number in range(IMAGES)]
    splits[-49:] = ["val"] * 49
    check = check_pairs(paired_store(tmp_path / "s", exchanged=40, splits=splits))
    shares = {share.split: share for share in check.shares}
    assert list(shares) == ["all", "train", "val", "test"]
    assert shares["test"].pairs == 100
    assert shares["test"].share == pytest.approx(0.4, abs=0.1)
    assert shares["train"].share == pytest.approx(0, abs=0.05)
    assert shares["val"].share is None
    assert "No share for val: it needs at least 50 pairs." in check.explanation()


def leave_out_marks(check: PairCheck, folder: Path) -> None:
    """Leave the pairs out that a check has marked."""
    c3tools.leave_out(check.store, check.save_table(folder / "pairs.parquet"))


@pytest.mark.parametrize("worst", [0.1, 0.3])
def test_the_share_after_its_own_marks_are_left_out_is_that_of_the_rest(
    tmp_path: Path, worst: float
) -> None:
    store = paired_store(tmp_path / "s", exchanged=80)
    first = check_pairs(store, mark_worst=worst)
    leave_out_marks(first, tmp_path)
    left = {pair.key for pair in first.pairs if not pair.leave_out}
    wrong = sum(int(key.removeprefix("text")) < 80 for key in left)

    second = check_pairs(tmp_path / "s")
    assert {pair.key for pair in second.pairs} == left
    assert all(pair.better is None or pair.better in left for pair in second.pairs)
    (share,) = second.shares
    assert share.pairs == len(left)
    assert share.share == pytest.approx(wrong / len(left), abs=0.04)
    assert share.interval is not None
    assert share.interval[0] - 0.01 <= wrong / len(left) <= share.interval[1] + 0.01


def test_the_interval_begins_where_all_that_are_left_out_are_unrelated() -> None:
    """60 pairs are left out; of 200 unrelated ones, a tenth are expected to be as low."""
    z = np.repeat([-40.0, -10.0, 45.0], [60, 40, 300])
    none = np.zeros(400, np.int64)
    scored = ScoredPairs(z, z, none, none, np.linspace(-50, 50, 1001), 400)
    items = np.arange(400)
    splits = np.full(400, "train", dtype=object)
    (share,) = unrelated_shares(scored, splits, items, is_used=z > -40)
    of_quartile = share_interval((z < -25).astype(float), items)
    assert of_quartile is not None
    assert share.share == pytest.approx((200 - 20) / 340, abs=0.001)
    assert share.interval is not None
    assert share.interval[0] == pytest.approx((4 * of_quartile[0] * 400 - 60) / 340)


def test_there_is_no_share_after_rows_were_left_out_by_hand(tmp_path: Path) -> None:
    store = paired_store(tmp_path / "s", exchanged=40)
    keys = [pair.key for pair in check_pairs(store).pairs[:5]]
    c3tools.leave_out(store, keys=keys[:2])
    assert check_pairs(tmp_path / "s").shares[0].share is not None
    c3tools.leave_out(tmp_path / "s", keys=keys, reason="another photo")
    check = check_pairs(tmp_path / "s")
    assert check.shares[0].share is None
    assert "5 rows were left out by hand" in " ".join(check.explanation())


def test_copies_that_are_left_out_do_not_hide_the_share(tmp_path: Path) -> None:
    store = paired_store(tmp_path / "s", exchanged=40)
    keys = [f"text{number}" for number in range(300, 320)]
    c3tools.leave_out(store, keys=keys, reason="copy of text1 (test)")
    (share,) = check_pairs(tmp_path / "s").shares
    assert share.pairs == IMAGES - 20
    assert share.share == pytest.approx(40 / 380, abs=0.04)


def test_a_fraction_of_each_kind_is_marked(tmp_path: Path) -> None:
    """The encoder knows the first half of the pairs less, so all of the worst are of them."""
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(IMAGES, DIM))
    noise = np.repeat([1.5, 0.3], IMAGES // 2)[:, None]
    keys = [f"image{number}" for number in range(IMAGES)]
    kinds = ["drawing"] * (IMAGES // 2) + ["photo"] * (IMAGES // 2)
    rows = [unit_rows(shared + noise * rng.normal(size=shared.shape)) for _ in range(2)]
    image = Rows.of("image", keys, rows[0], split=["train"] * IMAGES, kind=kinds)
    texts = [f"text{number}" for number in range(IMAGES)]
    text = Rows.of("text", texts, rows[1], image_key=keys, split=["train"] * IMAGES)
    build_store(tmp_path / "s", image, text, columns={"kind": "string"})

    def marked(check: PairCheck) -> list[int]:
        numbers = [int(pair.key.removeprefix("text")) for pair in check.pairs if pair.leave_out]
        of_drawings = sum(number < IMAGES // 2 for number in numbers)
        return [of_drawings, len(numbers) - of_drawings]

    check = check_pairs(tmp_path / "s", mark_worst=0.05)
    assert marked(check) == [20, 0]
    assert "--by COLUMN" in check.explanation()[-1]
    check = check_pairs(tmp_path / "s", mark_worst=0.05, by="kind")
    assert marked(check) == [10, 10]
    assert "--by COLUMN" not in " ".join(check.explanation())
    with pytest.raises(StoreError, match="has no column 'colour' of text rows"):
        check_pairs(tmp_path / "s", mark_worst=0.05, by="colour")
    with pytest.raises(C3Error, match="--by has no effect without --mark-worst"):
        check_pairs(tmp_path / "s", by="kind")


def test_the_table_has_a_row_a_pair(check: PairCheck, tmp_path: Path) -> None:
    table = pq.read_table(check.save_table(tmp_path / "pairs.parquet"))
    names = ["key", "image_key", "modality", "cosine", "z", "rank", "split", "leave_out", "reason"]
    names += ["better", "caption", "better_caption", "path"]
    assert table.column_names == names
    assert table.num_rows == IMAGES


def test_the_table_has_the_reasons_of_marked_pairs(tmp_path: Path) -> None:
    check = check_pairs(paired_store(tmp_path / "s", exchanged=40), mark_worst=0.1)
    rows = pq.read_table(check.save_table(tmp_path / "pairs.parquet")).to_pylist()
    for row in rows:
        is_marked = row["leave_out"]
        assert row["reason"] == (f"z {row['z']:.2f}, rank {row['rank']}" if is_marked else None)


def test_the_same_store_gives_the_same_result(check: PairCheck, tmp_path: Path) -> None:
    again = check_pairs(paired_store(tmp_path / "s", exchanged=40))
    assert again.to_dict() == check.to_dict()


def test_a_store_of_one_modality_has_no_pairs(tmp_path: Path) -> None:
    store = paired_store(tmp_path / "s")
    with pytest.raises(StoreError, match="two different modalities, not text"):
        check_pairs(store, modalities=["text"])


def test_embeddings_are_read_from_a_file_as_they_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = []
    score_pairs = wrong_pairs.score_pairs

    def record(pairs: Pairs, *options: Any) -> ScoredPairs:
        compared.extend([pairs.first, pairs.second])
        return score_pairs(pairs, *options)

    monkeypatch.setattr(wrong_pairs, "score_pairs", record)
    store = paired_store(tmp_path / "s")
    check_pairs(store)
    for rows in compared:
        assert isinstance(rows.embeddings, np.memmap)
        assert np.array_equal(rows.embeddings, store.load(rows.modality).embeddings)


def test_a_split_without_rows_has_no_pairs(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="0 pairs of image and text rows in the split 'val'"):
        check_pairs(paired_store(tmp_path / "s"), split="val")


def test_a_full_disk_is_told_with_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(wrong_pairs, "TemporaryFile", refuse)
    with pytest.raises(OSError, match=f"No space left on device: '{tempfile.gettempdir()}'"):
        check_pairs(paired_store(tmp_path / "s"))


def test_rows_that_do_not_belong_together_are_no_pairs(tmp_path: Path) -> None:
    rows = np.eye(30, DIM, dtype=np.float32)
    store = make_store(tmp_path / "s", rows, rows, owners=[None] * 30)
    with pytest.raises(StoreError, match="0 pairs of image and text rows"):
        check_pairs(store)


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 5])
def test_a_fraction_that_is_none_is_refused(tmp_path: Path, fraction: float) -> None:
    with pytest.raises(
        C3Error, match=r"--mark-worst is a fraction|mark_worst must be between 0 and 1"
    ):
        check_pairs(paired_store(tmp_path / "s"), mark_worst=fraction)


def test_the_page_shows_the_pairs_that_fit_least(check: PairCheck, tmp_path: Path) -> None:
    page = check.save(tmp_path / "pairs.html").read_text(encoding="utf-8")
    assert "400 pairs of image and text" in page
    assert check.pairs[0].caption
    assert check.pairs[0].caption in page
    assert "Fits better: caption" in page


@pytest.mark.parametrize("verb", [check_pairs, c3tools.find_duplicates])
def test_an_export_is_refused(tmp_path: Path, verb: Callable[..., Any]) -> None:
    store = paired_store(tmp_path / "s")
    export = c3tools.export_store(store, output=tmp_path / "export").output
    with pytest.raises(StoreError, match=r"is an export\. Its rows went through a pipeline"):
        verb(export)
