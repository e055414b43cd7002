"""Searches among rows whose kept columns fulfil conditions: against exact search in those rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from c3tools import Index, build_index
from c3tools.errors import StoreError
from c3tools.index.conditions import Columns
from c3tools.store import Rows
from tests.conftest import build_store, unit_rows

pytest.importorskip("faiss", reason="faiss is an extra")

TABLE = pa.table(
    {
        "colour": ["red", "blue", "red", None],
        "price": ["19.90", "20", "", "-3"],
        "size": ["S", "40", "", "XL"],
        "id": pa.array([2**60, 2**60 + 1, None, 7]),
        "weight": [0.5, None, 2.0, 20.0],
        "sold": [True, False, None, True],
        "stock": pa.array([None] * 4, pa.int64()),
    }
)


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        (["colour=red"], [0, 2]),
        ([" price < 20 "], [0, 3]),
        (["price=20.0"], [1]),
        (["price<=20", "price>=0"], [0, 1]),
        (["colour=red", "price>1"], [0]),
        (["colour=red", "sold=false"], []),
        (["size=40"], [1]),
        (["size="], [2]),
        ([f"id={2**60 + 1}"], [1]),
        (["id<7.5"], [3]),
        (["weight>0.5"], [2, 3]),
        (["sold=true"], [0, 3]),
    ],
)
def test_rows_that_fulfil_all_conditions_match(conditions: list[str], expected: list[int]) -> None:
    columns = Columns.of(TABLE, TABLE.column_names)
    assert np.flatnonzero(columns.matching(conditions)).tolist() == expected


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("red", "'red' is no condition"),
        ("color=red", "keeps no column 'color'. Its columns are: colour, price, size,"),
        ("colour=green", "No row of the index has colour=green. The values of colour are: red, bl"),
        ("price<-5", "has price<-5. The values of price go from -3 to 20"),
        ("price<cheap", "'cheap' is no number"),
        ("price=nan", "'nan' is no number"),
        ("size<40", r"the values of size are not all numbers. The values of size are: S, 40, , XL"),
        ("stock=1", r"has stock=1\. No row has a value of stock\."),
        ("sold=maybe", "The values of sold are: true, false"),
    ],
)
def test_what_is_not_there_is_an_error_that_names_what_is(condition: str, message: str) -> None:
    with pytest.raises(StoreError, match=message):
        Columns.of(TABLE, TABLE.column_names).matching([condition])


def test_an_error_names_the_most_frequent_values_alone() -> None:
    table = pa.table({"name": [*map(str, range(30)), *"bbb", "a"]})
    with pytest.raises(StoreError, match=r"are: b, 0, 1, 2, 3, 4, 5, 6, 7, 8 and 22 others\."):
        Columns.of(table, ["name"]).matching(["name=c"])


@pytest.fixture(
    scope="module", params=["Flat", "IVF32,Flat", "RR16,IVF32,Flat", "PQ8", "IVF64_HNSW8,Flat"]
)
def index(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Index:
    """Images in 32 far clusters; `rare` of every hundredth row, `cell` of those of one cluster."""
    folder = tmp_path_factory.mktemp("conditions")
    count = 4000
    centres = np.repeat(unit_rows(32, 16), count // 32, axis=0)
    keys = [f"i{row:04d}" for row in range(count)]
    columns: dict[str, Any] = {
        "rare": ["yes" if row % 100 == 0 else "no" for row in range(count)],
        "cell": [str(row // (count // 32)) for row in range(count)],
    }
    rows = Rows.of("image", keys, centres + 0.3 * unit_rows(count, 16, 1), **columns)
    store = build_store(
        folder / "store",
        rows,
        columns=dict.fromkeys(columns, "string"),
        part_rows=1000,
    )
    # A recall that one list in 32 has without a condition
    return build_index(
        store, output=folder / "index", factory=request.param, preset="c1", recall=0.5
    )


@pytest.mark.parametrize("conditions", [["rare=yes"], ["cell=3"], ["cell<=1", "rare=yes"]])
def test_few_rows_are_searched_exactly(index: Index, conditions: list[str]) -> None:
    is_wanted = index.columns.matching(conditions)
    wanted = np.flatnonzero(is_wanted)
    vectors = index.indexes["image"].reconstruct_batch(wanted)
    queries = unit_rows(20, 16, 2)
    exact = np.argsort(-queries @ vectors.T, axis=1)[:, :10]
    lists = index.rank(queries, "image", where=conditions, by="row")
    for hits, best in zip(lists, exact, strict=True):
        assert [hit.row for hit in hits] == wanted[best].tolist()
