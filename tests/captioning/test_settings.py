"""Settings that are published or given by default, and the losses of trainings with some of them,
as records."""

from __future__ import annotations

import inspect
from dataclasses import asdict
from pathlib import Path
from typing import Any

from c3tools import Captioner, caption_images, evaluate_captions, train_captioner
from c3tools.captioning.caption_files import CaptionWriter
from c3tools.captioning.config import SIZES, load_size
from c3tools.captioning.esper import ESPER_TRAINING
from c3tools.captioning.generation import GenerationConfig, GenerationOptions
from c3tools.captioning.steering import CANDIDATES
from tests.golden import recorded

GOLDEN = Path(__file__).parent / "golden"


def test_settings_that_are_published_or_by_default_are_those_on_record() -> None:
    functions: Any = (
        caption_images,
        evaluate_captions,
        train_captioner,
        load_size,
        Captioner.caption,
    )
    defaults = {
        one.__qualname__: {
            name: own.default
            for name, own in inspect.signature(one).parameters.items()
            if isinstance(own.default, int | float | str)
        }
        for one in (
            *functions,
            CaptionWriter.__init__,
            GenerationOptions,
            GenerationConfig,
        )
    }
    sizes = {name: asdict(size) for name, size in SIZES.items()}
    settings = {
        "sizes": sizes,
        "esper": asdict(ESPER_TRAINING),
        "candidates": CANDIDATES,
        "defaults": defaults,
    }
    recorded(GOLDEN / "settings.json", settings)


def test_the_losses_of_trainings_are_those_on_record(
    captioner: Captioner, language_model: Captioner
) -> None:
    made = {}
    for name, one in (("captioner", captioner), ("language model", language_model)):
        history = [
            {key: value for key, value in epoch.items() if key != "seconds"}
            for epoch in one.record["history"]
        ]
        made[name] = {**one.to_dict(), "history": history[:2]}
        del made[name]["best_val_loss"], made[name]["trace"]
    recorded(GOLDEN / "trainings.json", made, rel=2e-3)
