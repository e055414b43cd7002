from __future__ import annotations

import pytest
import torch

from c3tools.errors import TransformError
from c3tools.transforms import Pipeline, preset
from c3tools.transforms.steps import Normalize, Retrieval
from c3tools.transforms.torch_module import TransformModule
from tests.stores import assert_close

from .conftest import Pairs


def test_retrieval_agrees_with_numpy(pairs: Pairs) -> None:
    items = ["one"] * 115 + ["two"] * 5  # fewer than neighbours are left to some inputs
    for changes in ({}, {"tau": 0.0}, {"neighbours": 500, "weight": 0.3}):
        for own in (items, ["one"] * 120):  # and none to these
            pipeline = Pipeline([Normalize(), Retrieval(**changes), Normalize()]).fit(  # type: ignore[arg-type]
                {"text": pairs.y}, items={"text": own}
            )
            module = TransformModule(pipeline, "text").train()
            expected = pipeline.transform(pairs.y, modality="text", training=True, items=items)
            assert_close(module(torch.from_numpy(pairs.y), items=items).numpy(), expected)
            with pytest.raises(TransformError, match="items="):
                module(torch.from_numpy(pairs.y))
        assert [name for name in module.state_dict() if "memory" in name] == ["memory_1"]  # once, for both roles


def test_noise_without_keys_only_in_training(pairs: Pairs) -> None:
    module = TransformModule(preset("c3").fit(pairs.moments), "text")
    x = torch.from_numpy(pairs.y)
    assert torch.equal(module(x), module(x))
    module.train()
    torch.manual_seed(0)
    first, second = module(x), module(x)
    assert not torch.allclose(first, second, atol=1e-2)
    torch.manual_seed(0)
    assert torch.equal(first, module(x))


def test_state_dict_holds_the_fit_and_gradients_flow(pairs: Pairs) -> None:
    module = TransformModule(preset("ridge").fit(pairs.moments, pairs.rows), "image")
    assert module.state_dict()["matrix_1"].shape == (24, 24)
    x = torch.from_numpy(pairs.x).float().requires_grad_()
    module(x).square().sum().backward()
    # outputs have unit norm whatever x is, so their squared norm has no gradient
    assert x.grad is not None and x.grad.abs().max() < 1e-5


def test_module_refusals(pairs: Pairs) -> None:
    pipeline = preset("c3").fit({"text": pairs.moments["text"]})
    module = TransformModule(pipeline).train()
    assert module.modality == "text"
    for refused, words in (
        (lambda: TransformModule(preset("c3")), "not fitted"),
        (lambda: TransformModule(pipeline, "image"), "'image'"),
        (lambda: TransformModule(preset("c3").fit(pairs.moments)), "modality='image'"),
        (lambda: module(torch.zeros(2, 3)), "24 .* 3"),
    ):
        with pytest.raises(TransformError, match=words):
            refused()
