from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from PIL import Image

from c3tools.encoders import Encoder
from c3tools.errors import GeneratorError, OutputError
from c3tools.imaging.generation import GeneratedImages, captions_to_show, generate
from c3tools.imaging.generator import Generator
from c3tools.io.files import write_atomically
from tests.conftest import C3, Messages, unit_rows
from tests.servers import Hub

from .worlds import FP32, write_photos

STEPS = 2


def pixels(images: list[Image.Image]) -> list[list[int]]:
    return [np.asarray(image).ravel().tolist() for image in images]


def test_the_same_text_and_seed_give_the_same_image(untrained: Generator, encoder: Encoder, tmp_path: Path) -> None:
    texts = ["a dog on the beach", "a red bus", "snow"]
    together = generate(texts, generator=untrained, encoder=encoder, output=tmp_path / "a", sampling_steps=STEPS)
    alone = generate("a red bus", generator=untrained, encoder=encoder, output=tmp_path / "b", sampling_steps=STEPS)
    assert pixels(alone.open())[0] == pixels(together.open())[1]
    assert alone.images[0].file == together.images[1].file
    again = untrained.generate(texts[::-1], encoder=encoder, sampling_steps=STEPS)
    assert pixels(again)[::-1] == pixels(together.open())
    other = untrained.generate(["a red bus"], encoder=encoder, sampling_steps=STEPS, seed=1)
    assert pixels(other)[0] != pixels(alone.open())[0]
    assert len({str(p) for p in pixels(together.open())}) == 3
    # several images of a text differ, and the first is that of one
    three = pixels(untrained.generate(["a red bus"], encoder=encoder, n=3, sampling_steps=STEPS))
    assert three[:1] == pixels(alone.open())
    assert three[0] != three[1] != three[2] != three[0]


def test_a_folder_has_images_a_list_and_a_page(untrained: Generator, encoder: Encoder, tmp_path: Path) -> None:
    texts, folder = ["<b>a dog</b>", "snow"], tmp_path / "out"
    made = generate(texts, n=2, generator=untrained, encoder=encoder, output=folder, sampling_steps=STEPS)
    names = {image.file for image in made.images}
    assert {path.name for path in folder.iterdir()} == names | {"images.json", "images.html"}
    assert [(image.asked, image.number) for image in made.images] == [(text, n) for text in texts for n in (0, 1)]
    page = (folder / "images.html").read_text()
    assert page.count("data:image/png") == 4
    assert "&lt;b&gt;a dog" in page
    assert "<b>a dog" not in page
    loaded = GeneratedImages.load(folder)
    assert (loaded.images, loaded.modality) == (made.images, "text")
    assert loaded.settings["model"]["name"] == "c3-mini"


def test_what_is_there_is_not_made_again(
    untrained: Generator, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, asked, sample = tmp_path / "out", list[int](), untrained.sample
    options: dict[str, Any] = {"generator": untrained, "encoder": encoder, "output": folder, "sampling_steps": STEPS}
    first = generate(["a", "b", "c"], **options)
    (folder / first.images[1].file).unlink()

    def spy(embeddings: np.ndarray, *rest: Any, **named: Any) -> Iterator[Image.Image]:
        asked.append(len(embeddings))
        return sample(embeddings, *rest, **named)

    monkeypatch.setattr(untrained, "sample", spy)
    told = Messages()
    again = generate(["a", "b", "c"], **options, reporter=told)
    assert told.texts == ["2 images already exist."]
    assert pixels(again.open()) == pixels(first.open())
    generate(["a"], **{**options, "sampling_steps": 3})
    assert asked == [1, 1]
    assert (folder / first.images[0].file).is_file()  # another setting has another name


def test_a_full_disk_keeps_what_was_written(
    untrained: Generator, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Path] = []

    def full(path: Path, write: Any) -> None:
        if written:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        written.append(path)
        write_atomically(path, write)

    options: dict[str, Any] = {"generator": untrained, "encoder": encoder, "output": tmp_path / "out"}
    with monkeypatch.context() as patch:
        patch.setattr("c3tools.imaging.generation.write_atomically", full)
        with pytest.raises(OSError, match="No space left"):
            generate(["a", "b"], sampling_steps=STEPS, **options)
    assert written[0].is_file()
    assert len(generate(["a", "b"], sampling_steps=STEPS, **options).open()) == 2


def test_images_of_embeddings_and_of_photos(untrained: Generator, encoder: Encoder, tmp_path: Path) -> None:
    photo = write_photos(tmp_path / "photos", 2)[1]
    np.save(tmp_path / "vectors.npy", encoder.encode_images([photo], batch_size=1))
    options: dict[str, Any] = {"generator": untrained, "encoder": encoder, "sampling_steps": STEPS}
    of_photo = generate(images=[photo], output=tmp_path / "a", **options)
    options |= {"embeddings": tmp_path / "vectors.npy", "output": tmp_path / "b"}
    of_image, of_text = (generate(modality=modality, **options) for modality in ("image", "text"))
    assert of_photo.images[0].file.startswith("photo001-")
    assert of_photo.modality == of_image.modality == "image"
    # the mean of the modality is another, and so is the image
    assert pixels(of_image.open()) != pixels(of_text.open())
    own = untrained.generate(images=[photo], keys=["embedding 0"], encoder=encoder, sampling_steps=STEPS)
    assert pixels(own) == pixels(of_image.open())


@pytest.mark.parametrize("modality", ["text", "image"])
def test_other_vectors_are_other_images_of_the_same_folder(untrained: Generator, tmp_path: Path, modality: str) -> None:
    options: dict[str, Any] = {"generator": untrained, "modality": modality, "output": tmp_path / "out"}
    vectors = unit_rows(2, untrained.dim)
    first, second, again = (
        generate(embeddings=vectors[rows], sampling_steps=STEPS, **options) for rows in ([0], [1], [0])
    )
    assert [made.images[0].asked for made in (first, second, again)] == ["embedding 0"] * 3
    assert first.images == again.images
    assert pixels(first.open()) == pixels(again.open()) != pixels(second.open())


def test_one_caption_of_each_image_is_drawn_by_the_seed(tmp_path: Path) -> None:
    path = tmp_path / "captions.jsonl"
    rows = [
        {"image": f"{i}.jpg", "captions": [f"{i} {j}" for j in range(5)], "split": "test" if i < 30 else "train"}
        for i in range(40)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    drawn = captions_to_show(path, "test", seed=0)
    assert [key for _, key in drawn] == [str(i) for i in range(30)]
    assert drawn == captions_to_show(path, "test", seed=0) != captions_to_show(path, "test", seed=1)
    assert {asked.split()[1] for asked, _ in drawn} == set("01234")
    assert len(captions_to_show(path)) == 40
    (tmp_path / "texts.txt").write_text("a dog\n\na cat\n")
    assert [asked for asked, _ in captions_to_show(tmp_path / "texts.txt")] == ["a dog", "a cat"]
    with pytest.raises(GeneratorError, match="no captions in the split 'val'"):
        captions_to_show(path, "val")


def test_what_cannot_be_asked_is_refused(untrained: Generator, encoder: Encoder, tmp_path: Path) -> None:
    for options, named in (
        ({"texts": ["a dog"], "embeddings": np.ones((1, 4), np.float32)}, "one of"),
        ({"embeddings": np.ones((1, 4), np.float32)}, r"\d+ dimensions \(c3-mini.* 4"),
    ):
        with pytest.raises(GeneratorError, match=named):
            untrained.generate(**options, encoder=encoder)
    with pytest.raises(GeneratorError, match="c3-mini"):
        untrained.check_model({"name": "other"}, untrained.dim)
    bad = np.full((2, untrained.dim), np.nan, np.float32)
    for given, named in (({}, "a dog"), ({"texts": "a", "n": 0}, "-n"), ({"embeddings": bad}, "finite")):
        with pytest.raises(GeneratorError, match=named):
            generate(**given, generator=untrained, output=tmp_path / "out")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.png").write_bytes(b"")
    with pytest.raises(OutputError, match="mine"):
        generate("a dog", generator=untrained, encoder=encoder, output=tmp_path / "other")
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["mine.png"]


def test_the_command_asks_a_saved_generator(c3: C3, untrained: Generator, tmp_path: Path) -> None:
    untrained.save(tmp_path / "c3-generator")
    (tmp_path / "texts.txt").write_text("a dog\na cat\n")
    result = c3("generate", "--captions", "texts.txt", "--sampling-steps", "2", "--json", "made.json", "-n", "2")
    assert result.exit_code == 0, result.stderr
    content = json.loads((tmp_path / "made.json").read_text())
    assert [image["asked"] for image in content["images"]] == ["a dog", "a dog", "a cat", "a cat"]
    assert content == json.loads((tmp_path / "c3-images" / "images.json").read_text())
    assert all((tmp_path / "c3-images" / image["file"]).is_file() for image in content["images"])
    weights = tmp_path / "c3-generator" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    cut = c3("generate", "a dog")
    assert cut.exit_code == 1
    assert "weights.safetensors" in "".join(cut.stderr.split())


def test_a_generator_comes_back_from_the_hub(untrained: Generator, hub: Hub) -> None:
    untrained.push_to_hub("me/images")
    header: Any = huggingface_hub.ModelCard(hub.last("models/me/images")["README.md"].decode()).data
    assert (header.library_name, header.pipeline_tag) == ("c3tools", "text-to-image")
    for loaded in (Generator.from_pretrained("me/images", compute=FP32), Generator.load("hf-hub:me/images", FP32)):
        assert loaded.fingerprint() == untrained.fingerprint()
