"""The columns that are picked from tables of other programs, and what is read from them."""

from __future__ import annotations

import pytest

from c3tools.corpus.tables import IMAGE_KEY, ITEM, ROLES, ROW_KEY, TEXT_KEY, Role, pick, pick_all


@pytest.mark.parametrize(
    ("columns", "roles", "column"),
    [
        ("id image_id file_name key", IMAGE_KEY, "key"),
        ("id image_id file_name", IMAGE_KEY, "file_name"),
        ("id image_id", IMAGE_KEY, "image_id"),
        ("file_name id", ROW_KEY, "id"),
        ("image_key id caption_id", TEXT_KEY, "caption_id"),
        ("img_id filename image_key", ITEM, "image_key"),
        ("caption text", ("caption",), "text"),
        ("a b", ("caption",), None),
    ],
)
def test_the_first_usual_name_of_the_first_role_is_picked(
    columns: str, roles: tuple[Role, ...], column: str | None
) -> None:
    assert pick(columns.split(), *roles) == column


def test_a_column_that_is_wanted_comes_before_the_usual_ones() -> None:
    assert pick(["key", "name"], "key", wanted="name") == "name"


def test_a_wanted_column_that_is_not_there_leaves_the_usual_one() -> None:
    assert pick(["key", "name"], "key", wanted="other") == "key"


@pytest.mark.parametrize(
    ("columns", "column"),
    [("TEXT URL", "TEXT"), ("TEXT text", "text"), ("TEXT Text", "TEXT")],
)
def test_usual_names_may_differ_by_case(columns: str, column: str) -> None:
    assert pick(columns.split(), "caption") == column


def test_all_columns_come_in_the_order_of_roles_and_names() -> None:
    assert pick_all(["image_id", "note", "image", "pair_key"], *ITEM) == [
        "pair_key",
        "image",
        "image_id",
    ]


@pytest.mark.parametrize("roles", [IMAGE_KEY, ROW_KEY, TEXT_KEY, ITEM])
def test_a_name_is_of_one_role_alone(roles: tuple[Role, ...]) -> None:
    names = [name for role in roles for name in ROLES[role]]
    assert len(names) == len(set(names))
