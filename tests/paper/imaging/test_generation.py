from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from c3tools.encoders import Encoder
from c3tools.errors import C3Error, GeneratorError, OutputError
from c3tools.paper.imaging.generation import GeneratedImages, generate
from c3tools.paper.imaging.generator import Generator
from tests.conftest import C3, Messages, done, unit_rows, write_jsonl
from tests.golden import recorded
from tests.servers import Hub

from .conftest import FP32, write_photos

Make = Callable[..., GeneratedImages]


@pytest.fixture
def make(untrained: Generator, encoder: Encoder, c3: C3) -> Make:
    """Generate images into ``out`` in an empty folder."""

    def run(texts: Any = (), **options: Any) -> GeneratedImages:
        shared = {"generator": untrained, "encoder": encoder, "output": "out", "sampling_steps": 2}
        return generate(texts, **{**shared, **options})

    return run


def pixels(images: list[Image.Image]) -> list[bytes]:
    return [image.tobytes() for image in images]


def test_the_same_text_and_seed_give_the_same_image(
    make: Make, untrained: Generator, encoder: Encoder
) -> None:
    texts = ["a dog on the beach", "a red bus", "snow"]
    made, alone = make(texts), make("a red bus")
    together = pixels(made.open())
    colours = [np.asarray(image).mean(axis=(0, 1)).tolist() for image in made.open()]
    recorded(Path(__file__).parent / "golden/colours.json", colours, rel=0.02)
    assert alone.images[0] == made.images[1]
    ask = partial(untrained.generate, encoder=encoder, sampling_steps=2)
    assert pixels(ask(texts[::-1]))[::-1] == together
    # several images of a text differ, the first is that of one, and those of another seed are
    # others
    three, other = pixels(ask(["a red bus"], n=3)), pixels(ask(["a red bus"], seed=1))
    assert three[0] == together[1]
    assert len({*together, *three, *other}) == 6


def test_a_folder_has_images_a_list_and_a_page_and_what_is_there_is_not_made_again(
    make: Make,
) -> None:
    texts, folder, told = ["<b>a dog</b>", "snow"], Path("out"), Messages()
    made = make(texts, n=2)
    names = [image.file for image in made.images]
    assert {path.name for path in folder.iterdir()} == {*names, "images.json", "images.html"}
    assert [(image.asked, image.number) for image in made.images] == [
        (text, n) for text in texts for n in (0, 1)
    ]
    page = (folder / "images.html").read_text()
    shown = [page.count(part) for part in ("data:image/png", "<b>a dog")]
    assert (shown, "&lt;b&gt;a dog" in page) == ([4, 0], True)
    loaded = GeneratedImages.load(folder)
    assert (loaded.images, loaded.modality, loaded.settings["model"]["name"]) == (
        made.images,
        "text",
        "c3-mini",
    )
    content = {name: (folder / name).read_bytes() for name in names}
    (folder / names[1]).unlink()
    (folder / names[0]).write_bytes(content[names[2]])
    make(texts, n=2, reporter=told)
    assert told.texts == ["3 images already exist."]
    assert [(folder / name).read_bytes() for name in names[:2]] == [
        content[names[2]],
        content[names[1]],
    ]
    # another setting has another name
    assert make(["snow"], sampling_steps=3).images[0].file not in names


def test_images_of_embeddings_and_of_photos(
    make: Make, untrained: Generator, encoder: Encoder
) -> None:
    photo = write_photos(Path("photos"), 2)[1]
    np.save("vectors.npy", encoder.encode_images([photo], batch_size=1))
    of_photo = make(images=[photo])
    of_image, of_text = (
        make(modality=name, embeddings="vectors.npy") for name in ("image", "text")
    )
    assert of_photo.images[0].file.startswith("photo001-")
    assert of_photo.modality == of_image.modality == "image"
    own = untrained.generate(
        images=[photo], keys=["embedding 0"], encoder=encoder, sampling_steps=2
    )
    # the mean of the other modality is another, and so is the image
    assert pixels(own) == pixels(of_image.open()) != pixels(of_text.open())
    # other vectors are other images of the same folder
    first, second, again = (
        make(embeddings=unit_rows(2, untrained.dim)[[row]]) for row in (0, 1, 0)
    )
    assert first.images == again.images
    assert pixels(first.open()) == pixels(again.open()) != pixels(second.open())


def test_one_caption_of_each_image_is_drawn_by_the_seed(make: Make) -> None:
    lines, splits = Path("texts.txt"), ["test"] * 8 + ["train"] * 2
    captions = [[f"{i} {j}" for j in range(3)] for i in range(10)]
    rows = (
        {"image": f"{i}.jpg", "captions": captions[i], "split": split}
        for i, split in enumerate(splits)
    )
    path = write_jsonl(Path("captions.jsonl"), *rows)
    lines.write_text("a dog\n\na cat\n")

    def asked(path: Path, **options: Any) -> list[tuple[str, str | None]]:
        return [
            (image.asked, image.key)
            for image in make(captions=path, sampling_steps=1, **options).images
        ]

    drawn = asked(path, split="test")
    assert drawn == [(f"{key} {caption}", str(key)) for key, caption in enumerate("02202010")]
    assert drawn == asked(path, split="test") != asked(path, split="test", seed=1)
    assert len(asked(path)) == 10
    assert asked(lines) == [("a dog", None), ("a cat", None)]
    with pytest.raises(GeneratorError, match="no captions in the split 'val'"):
        asked(path, split="val")


def test_what_cannot_be_asked_is_refused(
    make: Make, untrained: Generator, encoder: Encoder
) -> None:
    short, bad = np.ones((1, 4), np.float32), np.full((2, untrained.dim), np.nan, np.float32)
    with pytest.raises(GeneratorError, match="one of"):
        untrained.generate(["a dog"], embeddings=short, encoder=encoder)
    other = SimpleNamespace(identity={"name": "other"}, dim=untrained.dim)
    for given, named in (
        ({"texts": "a dog", "encoder": other}, "c3-mini.*other"),
        ({"texts": "a", "n": 0}, "n must be at least 1"),
        ({"embeddings": bad}, "finite"),
        ({"embeddings": short}, r"\d+ dimensions \(c3-mini.* 4"),
    ):
        with pytest.raises(C3Error, match=named):
            make(**given)
    Path("out").mkdir()
    Path("out/mine.png").touch()
    with pytest.raises(OutputError, match="mine"):
        make("a dog")
    assert [path.name for path in Path("out").iterdir()] == ["mine.png"]


def test_the_command_asks_a_saved_generator(c3: C3, untrained: Generator, hub: Hub) -> None:
    untrained.save(Path("c3-generator"))
    Path("texts.txt").write_text("a dog\na cat\n")
    done(
        c3(
            "generate",
            "--captions",
            "texts.txt",
            "--sampling-steps",
            "2",
            "--json",
            "made.json",
            "-n",
            "2",
        )
    )
    content = json.loads(Path("made.json").read_text())
    assert content.pop("schema") == 1
    assert [image["asked"] for image in content["images"]] == ["a dog", "a dog", "a cat", "a cat"]
    assert {**content, "format_version": 1} == json.loads(Path("c3-images/images.json").read_text())
    assert (
        "4 images by c3-generator, seed 0, 2 steps, guidance 2."
        in Path("c3-images/images.html").read_text()
    )
    untrained.push_to_hub("me/images")
    assert "pipeline_tag: text-to-image" in hub.last("models/me/images")["README.md"].decode()
    assert Generator.load("hf-hub:me/images", FP32).fingerprint() == untrained.fingerprint()
