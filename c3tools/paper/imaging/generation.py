"""`c3 generate`: images of texts, captions, embeddings or photos into a folder, with a page of
them.

    c3-images/
      images.json             the text of each image, and the settings
      NAME-1f3a9c02.png       one file per image; its name has a digest of all that it depends on
      images.html             all images on one page

An image that already exists is not made again, so the same command continues, and another adds to
the folder.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ... import devices
from ...arrays import Matrix
from ...choices import PositiveInt, Precision, checked
from ...corpus.caption_tables import read_captions
from ...corpus.items import key_of_name
from ...corpus.splits import splits_of
from ...encoders import Encoder
from ...errors import GeneratorError, note_on_interrupt
from ...inputs.import_embeddings import read_rows
from ...io.artifact import digest_of, require_result_or_empty
from ...io.files import (
    MALFORMED,
    read_json,
    recorded_file,
    write_atomically,
    write_json_atomically,
    write_text_atomically,
)
from ...io.images import data_url
from ...io.lock import locked
from ...lists import as_list
from ...pages import render_page
from ...reporter import SILENT, Reporter
from ...result_table import Table
from ...seeds import generator as seeded
from ...store import Store
from .generator import PREFIX, Generator, ImageGenerator, PretrainedGenerator

LIST_FILE = "images.json"
PAGE_FILE = "images.html"
_IN_PAGE = 400
_SLUG = re.compile(r"[^a-z0-9]+")


class GeneratedImage(NamedTuple):
    """One image of a folder.

    Attributes:
        file: its name in the folder.
        asked: the text, the path of the photo, or the number of the embedding.
        key: of the image that a caption is of, or None.
        number: among the images of one request, from 0.
    """

    file: str
    asked: str
    key: str | None = None
    number: int = 0


@dataclass(frozen=True)
class GeneratedImages:
    """Images in a folder, and how they were made.

    Attributes:
        folder: of the images.
        images: in the order of the texts.
        modality: of the texts or vectors that they were generated from: ``text`` or ``image``.
        settings: ``generator``, ``model``, ``seed``, ``sampling_steps``, ``guidance``.
    """

    folder: Path
    images: list[GeneratedImage]
    modality: str
    settings: dict[str, Any]

    def open(self) -> list[Image.Image]:
        """Return the images themselves, RGB.

        Raises:
            GeneratorError: if one is missing or damaged.
        """
        opened = []
        for image in self.images:
            path = self.folder / image.file
            try:
                with Image.open(path) as file:
                    opened.append(file.convert("RGB"))
            except (OSError, SyntaxError, ValueError) as error:
                raise GeneratorError(
                    f"The image {path} cannot be read ({error}).",
                    remedy="Run the same `c3 generate` command again.",
                ) from error
        return opened

    def table(self) -> Table:
        """Return the texts with the files of their images, as `c3 generate` prints them."""
        rows = [[image.asked, image.file] for image in self.images]
        return Table(["text", "image"], rows, left=["image"])

    def to_dict(self) -> dict[str, Any]:
        """Return the object that images.json contains and `c3 generate --json` writes."""
        images = [image._asdict() for image in self.images]
        return {"format_version": 1, **self.settings, "modality": self.modality, "images": images}

    @classmethod
    def load(cls, folder: str | Path) -> GeneratedImages:
        """Read what `c3 generate` wrote; in another folder, each PNG or JPEG is an image whose text
        is its name.

        Raises:
            GeneratorError: if there are no images.
        """
        folder = Path(folder)
        path = folder / LIST_FILE
        try:
            content = read_json(path)
            images = [GeneratedImage(**image) for image in content.pop("images")]
            modality = str(content.pop("modality"))
            for image in images:
                recorded_file(folder, image.file)
        except FileNotFoundError:
            files = sorted(
                file
                for file in folder.glob("*")
                if file.suffix.lower() in (".png", ".jpg", ".jpeg")
            )
            images = [GeneratedImage(file.name, file.stem) for file in files]
            modality = "unknown"
            content = {}
        except (OSError, *MALFORMED) as error:
            raise GeneratorError(
                f"{path} is damaged ({error}).", remedy="Run the same `c3 generate` command again."
            ) from error
        if not images:
            raise GeneratorError(
                f"There are no generated images in {folder}.",
                remedy="Generate some with `c3 generate`.",
            )
        return cls(folder, images, modality, content)


@checked
def generate(
    texts: str | Sequence[str] = (),
    *,
    captions: str | Path | None = None,
    split: str | None = None,
    embeddings: str | Path | Matrix | None = None,
    modality: str = "text",
    images: str | Path | Sequence[str | Path] = (),
    generator: ImageGenerator | str | Path = "c3-generator",
    store: Store | str | Path = "c3-store",
    output: str | Path = "c3-images",
    n: PositiveInt = 1,
    seed: int = 0,
    sampling_steps: PositiveInt = 25,
    guidance: float | None = None,
    device: str | None = None,
    backend: str = "auto",
    precision: Precision = "auto",
    encoder: Encoder | None = None,
    reporter: Reporter = SILENT,
) -> GeneratedImages:
    """Generate images from texts, from the captions in a file, from embeddings, or from photos
    (variations).

    The same text and seed give the same image, whatever else is generated in the same call.

    Args:
        texts: Descriptions of the images to generate.
        captions: A file of captions. One caption per image is drawn with the seed; from a .txt
            file, all lines are used.
        split: Use only this split of ``captions``.
        embeddings: See `caption_images`.
        modality: Modality of ``embeddings``: image or text.
        images: Make variations of these photos.
        generator: The folder of a trained generator, hf-hub:ORG/NAME, or unclip:PATH|ID.
        store: See `embed`.
        output: The folder to write the images to.
        n: Number of images per text.
        seed: Seed for all random numbers.
        sampling_steps: Number of sampling steps. More steps are slower and give slightly sharper
            images.
        guidance: Guidance scale, the weight of the text; 1 means no guidance. The default depends
            on the generator.
        device: See `connect_heads`.
        backend: See `embed`.
        precision: See `connect_heads`.
        encoder: Of the generator's model; by default it is loaded.
        reporter: Shows messages and progress.

    Raises:
        GeneratorError: if there is nothing to generate, embeddings are not finite rows, there is no
            generator, or it has another model or dimension.
        OutputError: if the folder contains other files.
        EncoderError: if the encoder cannot be loaded, or a photo cannot be read.
        OSError: if an image cannot be written; the images before it are kept.
    """
    images = as_list(images)
    texts = as_list(texts)
    sources = [bool(texts), captions is not None, embeddings is not None, bool(images)]
    if sum(sources) != 1:
        raise GeneratorError(
            "Pass either texts, or one of --captions, --embeddings and --image.",
            remedy='For example: c3 generate "a dog on the beach"',
        )
    folder = Path(output)
    compute = devices.pick(device, precision)
    name = "a generator"
    if isinstance(generator, str | Path):
        name = str(generator)
        if name.startswith(PREFIX):
            generator = PretrainedGenerator(name, store, compute)
        else:
            generator = Generator.load(name, compute)

    # What the images show, and its embeddings
    prompts: list[tuple[str, str | None]]
    if embeddings is not None:
        vectors, model = _read_embeddings(embeddings, modality)
        generator.check_model(model, vectors.shape[1])
        prompts = [(f"embedding {row}", None) for row in range(len(vectors))]
    else:
        modality = "image" if images else "text"
        prompts = [(str(asked), None) for asked in images or texts]
        if captions is not None:
            prompts = _captions_to_show(Path(captions), split, seed)
        asked_for = [asked for asked, _ in prompts]
        vectors = generator.encode(
            texts=None if images else asked_for,
            images=asked_for if images else None,
            encoder=encoder,
            device=device,
            backend=backend,
            reporter=reporter,
        )
    settings = {
        "generator": name,
        "model": dict(generator.model),
        "seed": seed,
        "sampling_steps": sampling_steps,
        "guidance": generator.guidance if guidance is None else guidance,
        "precision": generator.compute.precision,
    }
    made_from = {**settings, "generator": generator.fingerprint(), "modality": modality}
    listed: list[GeneratedImage] = []
    # by file: the row of the vectors, the key of the noise
    wanted: dict[str, tuple[int, tuple[str, int]]] = {}
    for row, (asked, key) in enumerate(prompts):
        subject = asked if embeddings is None and not images else digest_of(vectors[row])
        title = Path(asked).stem if modality == "image" else asked
        slug = _SLUG.sub("-", title.lower()).strip("-")
        for number in range(n):
            digest = digest_of(made_from, asked, subject, number)[:8]
            file = f"{slug[:48].strip('-') or 'image'}-{digest}.png"
            listed.append(GeneratedImage(file, asked, key, number))
            wanted[file] = row, (asked, number)
    made = GeneratedImages(folder, listed, modality, settings)
    kept = (
        f"Finished images are kept in {folder}; run the same command again to generate the others."
    )
    with locked(folder), note_on_interrupt(lambda: kept):
        require_result_or_empty(folder, "folder of generated images", (LIST_FILE,))
        write_json_atomically(folder / LIST_FILE, made.to_dict())
        pending = {file: of for file, of in wanted.items() if not (folder / file).is_file()}
        if len(pending) < len(wanted):
            reporter.message(f"{len(wanted) - len(pending):,} images already exist.")
        sampled = generator.sample(
            vectors[[row for row, _ in pending.values()]],
            modality,
            [noise for _, noise in pending.values()],
            seed,
            sampling_steps,
            guidance,
            reporter,
        )
        for file, picture in zip(pending, sampled, strict=True):
            write_atomically(folder / file, partial(picture.save, format="PNG"))
        _save_page(made)
    return made


def _read_embeddings(
    embeddings: str | Path | Matrix, modality: str
) -> tuple[Matrix, Mapping[str, Any] | None]:
    """Return embeddings (n, d) from an array or a file, and the model that made them, if known.

    Raises:
        GeneratorError: if they are not finite rows.
    """
    model = None
    if isinstance(embeddings, np.ndarray):
        vectors = np.atleast_2d(np.asarray(embeddings, dtype=np.float32))
    else:
        rows, model = read_rows(embeddings, modality)
        vectors = rows.embeddings
    if vectors.ndim != 2 or not len(vectors) or not np.isfinite(vectors).all():
        raise GeneratorError(
            f"Embeddings must be finite numbers of shape (n, d); these have shape {vectors.shape} "
            f"or contain NaN or infinity."
        )
    return vectors, model


def _captions_to_show(path: Path, split: str | None, seed: int) -> list[tuple[str, str | None]]:
    """Read a captions file: one caption of each image and its key, drawn by the seed; without
    images every caption.

    Raises:
        CorpusError: if the file cannot be read.
        GeneratorError: if there are no captions, or none in the split.
    """
    by_image: dict[str, list[str]] = {}
    prompts: list[tuple[str, str | None]] = []
    rows = list(read_captions(path))
    keys = [row.key or (key_of_name(row.file_name) if row.file_name else None) for row in rows]
    names = [key or f"{path.stem}:{row.line}" for key, row in zip(keys, rows, strict=True)]
    splits = splits_of(names, [row.split for row in rows])
    for row, key, row_split in zip(rows, keys, splits, strict=True):
        if split not in (None, row_split):
            continue
        captions = [caption.strip() for caption in row.captions if caption.strip()]
        if key is None:
            prompts += [(caption, None) for caption in captions]
        else:
            by_image.setdefault(key, []).extend(captions)
    for key, captions in by_image.items():
        if captions:
            number = int(seeded(seed, "caption", key).integers(len(captions)))
            prompts.append((captions[number], key))
    if not prompts:
        where = f" in the split {split!r}" if split else ""
        raise GeneratorError(
            f"{path} has no captions{where}.", remedy="Choose another file or --split."
        )
    return prompts


def _save_page(made: GeneratedImages) -> None:
    """Write a self-contained page of the images, those of one text together."""
    shown = replace(made, images=made.images[:_IN_PAGE])
    groups: dict[str, list[str]] = {}
    for image, picture in zip(shown.images, shown.open(), strict=True):
        groups.setdefault(image.asked, []).append(data_url(picture))
    more = f"; the first {_IN_PAGE:,} are shown" if len(made.images) > _IN_PAGE else ""
    lead = "{generator}, seed {seed}, {sampling_steps} steps, guidance {guidance:g}".format(
        **made.settings
    )
    lead = f"{len(made.images):,} images by {lead}{more}."
    template = Path(__file__).parent / "templates" / "images.html"
    page = render_page(template, title="Generated images", lead=lead, groups=groups)
    write_text_atomically(made.folder / PAGE_FILE, page)
