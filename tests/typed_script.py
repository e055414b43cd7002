"""A user's script, which mypy checks with `make types`: the ignored lines have to be errors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import c3tools

if TYPE_CHECKING:
    from typing import assert_type

    store = c3tools.embed("images/", model="ViT-B-32/openai")
    assert_type(store, c3tools.Store)
    c3tools.embed("images/", modle="ViT-B-32/openai")  # type: ignore[call-arg]
    c3tools.embed("images/", shard_size="4096")  # type: ignore[arg-type]
    assert_type(c3tools.gap_report(store), c3tools.GapReport)
    pipeline = c3tools.preset("c3", sigma="auto").fit(store)
    assert_type(pipeline, c3tools.Pipeline)
    captioner = c3tools.train_captioner(store, pipeline, output="c3-decoder")
    assert_type(captioner, c3tools.Captioner)
    index = c3tools.build_index(store)
    assert_type(index, c3tools.Index)
    index.search("a dog")[0].hits[0].points  # type: ignore[attr-defined]
    c3tools.no_such_name  # type: ignore[attr-defined]
