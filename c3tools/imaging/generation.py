"""`c3 generate`: images of texts, captions, embeddings or photos into a folder, with a contact sheet and a page.

    c3-images/
      images.json             the text of each image, and the settings
      NAME-1f3a9c02.png       one file per image; its name has a digest of all that the image depends on
      sheet.png, images.html  overviews of all images

An image that already exists is not made again, so the same command continues, and another adds to the folder.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from .. import devices
from ..arrays import Matrix
from ..corpus.captions import read_captions
from ..corpus.items import key_of_name
from ..corpus.splits import split_of
from ..encoders import Encoder, resolve_encoder
from ..errors import GeneratorError, telling_what_is_kept
from ..io.artifact import digest_of, holds_result
from ..io.files import MALFORMED, read_json, recorded_file, write_json_atomically
from ..io.lock import locked
from ..reporter import SILENT, Reporter
from ..seeds import generator as seeded
from ..store import Store
from ..store.import_embeddings import read_rows
from .generator import Generator, ImageGenerator
from .pretrained import PretrainedGenerator
from .sheet import contact_sheet, in_rows, save_image, save_page

LIST_FILE = "images.json"
SHEET_FILE = "sheet.png"
PAGE_FILE = "images.html"
_BLOCK = 64  # images between two writes
_IN_SHEET = 400
_SLUG = re.compile(r"[^a-z0-9]+")


@dataclass(frozen=True)
class GeneratedImage:
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
                    f"The image {path} cannot be read ({error}).", remedy="Run the same `c3 generate` command again."
                ) from error
        return opened

    def to_dict(self) -> dict[str, Any]:
        """Return the object that images.json contains and `c3 generate --json` writes."""
        images = [asdict(image) for image in self.images]
        return {"format_version": 1, **self.settings, "modality": self.modality, "images": images}

    @classmethod
    def load(cls, folder: str | Path) -> GeneratedImages:
        """Read what `c3 generate` wrote; in another folder, each PNG or JPEG is an image whose text is its name.

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
            files = sorted(file for file in folder.glob("*") if file.suffix.lower() in (".png", ".jpg", ".jpeg"))
            images, modality, content = [GeneratedImage(file.name, file.stem) for file in files], "unknown", {}
        except (OSError, *MALFORMED) as error:
            raise GeneratorError(
                f"{path} is damaged ({error}).", remedy="Run the same `c3 generate` command again."
            ) from error
        if not images:
            raise GeneratorError(f"There are no generated images in {folder}.", remedy="Make some with `c3 generate`.")
        return cls(folder, images, modality, content)


def generate(
    texts: str | Sequence[str] = (),
    *,
    captions: str | Path | None = None,
    split: str | None = None,
    embeddings: str | Path | npt.NDArray[np.float32] | None = None,
    modality: str = "text",
    key: str | None = None,
    images: Sequence[str | Path] = (),
    generator: ImageGenerator | str | Path = "c3-generator",
    store: Store | str | Path = "c3-store",
    output: str | Path = "c3-images",
    n: int = 1,
    seed: int = 0,
    sampling_steps: int = 25,
    guidance: float | None = None,
    device: str | None = None,
    backend: str = "auto",
    precision: str = "auto",
    encoder: Encoder | None = None,
    reporter: Reporter = SILENT,
) -> GeneratedImages:
    """Generate images from texts, from the captions in a file, from embeddings, or from photos (variations).

    The same text and seed give the same image, whatever else is generated in the same call.

    Args:
        texts: Texts that say what the images show.
        captions: A file of captions. One caption of each image is drawn with the seed; from a .txt file every line is
            used.
        split: Use only this split of ``captions``.
        embeddings: Embeddings of the same model: a file (npy, npz, pt, safetensors, csv, jsonl, parquet) or a store.
        modality: Modality of ``embeddings``: image or text.
        key: The array, tensor or column of ``embeddings`` to read. For a store: the modality, if it is not
            ``modality``.
        images: Make variations of these photos.
        generator: The folder of a trained generator, hf-hub:ORG/NAME, or kandinsky-2.2:PATH|ID, unclip:PATH|ID.
        store: The store of embeddings: a folder or a URL (s3://, gs://).
        output: The folder to write the images to.
        n: Number of images per text.
        seed: Seed for all random numbers.
        sampling_steps: Number of sampling steps. More steps are slower and give slightly sharper images.
        guidance: Weight of the text; 1 is the weight in training. The default depends on the generator.
        device: cpu, cuda, cuda:1 or mps. By default the fastest available.
        backend: auto, torch or openvino (for CPUs; needs the extra openvino).
        precision: auto, fp32, bf16, fp16, or int8 (encoders on a CPU; needs the extra int8).
        encoder: Of the generator's model; by default it is loaded.
        reporter: Shows messages and progress.

    Raises:
        GeneratorError: if there is nothing to generate, there is no generator, or it has another model or dimension.
        OutputError: if the folder contains other files.
        EncoderError: if the encoder cannot be loaded, or a photo cannot be read.
        OSError: if an image cannot be written; the images before it are kept.
    """
    texts = [texts] if isinstance(texts, str) else list(texts)
    given = [bool(texts), captions is not None, embeddings is not None, bool(images)]
    if sum(given) != 1:
        raise GeneratorError(
            "Nothing to generate: give texts, or one of --captions, --embeddings and --image."
            if not any(given)
            else "Give only one of texts, --captions, --embeddings and --image.",
            remedy='For example: c3 generate "a dog on the beach"',
        )
    if n < 1:
        raise GeneratorError(f"n must be at least 1, not {n}.")
    folder, compute = Path(output), devices.pick(device, precision)
    if isinstance(generator, str | Path):
        if PretrainedGenerator.is_name(generator):
            generator = PretrainedGenerator(str(generator), store, compute)
        else:
            generator = Generator.load(generator, compute)
    if embeddings is not None:
        vectors = _vectors(embeddings, modality, key, generator)
        prompts: list[tuple[str, str | None]] = [(f"embedding {row}", None) for row in range(len(vectors))]
    else:
        modality = "image" if images else "text"
        prompts = [(str(asked), None) for asked in images or texts]
        prompts = captions_to_show(Path(captions), split, seed) if captions is not None else prompts
        asked = [text for text, _ in prompts]
        encoder = encoder or resolve_encoder(
            recorded=generator.model, device=device, backend=backend, reporter=reporter
        )
        given_as: dict[str, Any] = {"images" if images else "texts": asked}
        vectors = generator.encode(**given_as, encoder=encoder, reporter=reporter)
    settings = {
        "generator": str(generator),
        "model": dict(generator.model),
        "seed": seed,
        "sampling_steps": sampling_steps,
        "guidance": generator.guidance if guidance is None else guidance,
        "precision": generator.compute.precision,
    }
    with locked(folder):
        holds_result(folder, "folder of generated images", (LIST_FILE,))
        from_texts = embeddings is None and not images
        made = _make(generator, prompts, vectors, modality, from_texts, n, settings, folder, reporter)
        _save_overviews(made)
    return made


def captions_to_show(path: Path, split: str | None = None, seed: int = 0) -> list[tuple[str, str | None]]:
    """Read a captions file: one caption of each image and its key, drawn by the seed; without images every caption.

    Raises:
        CorpusError: if the file cannot be read.
        GeneratorError: if there are no captions, or none in the split.
    """
    by_image: dict[str, list[str]] = {}
    prompts: list[tuple[str, str | None]] = []
    for row in read_captions(path):
        own = [caption.strip() for caption in row.captions if caption.strip()]
        key = row.key or (key_of_name(row.file_name) if row.file_name else None)
        if split is not None and split_of(row.split, key or f"{path.stem}:{row.line}") != split:
            continue
        if key is None:
            prompts += [(caption, None) for caption in own]
        else:
            by_image.setdefault(key, []).extend(own)
    for key, own in by_image.items():
        if own:
            prompts.append((own[int(seeded(seed, "caption", key).integers(len(own)))], key))
    if not prompts:
        where = f" in the split {split!r}" if split else ""
        raise GeneratorError(f"{path} has no captions{where}.", remedy="Choose another file or --split.")
    return prompts


def _save_overviews(made: GeneratedImages) -> None:
    """Write the contact sheet and the page: with a row for each text that has several images."""
    shown = GeneratedImages(made.folder, made.images[:_IN_SHEET], made.modality, made.settings)
    opened = shown.open()
    entries: dict[str, list[Image.Image]] = {}
    for image, picture in zip(shown.images, opened, strict=True):
        entries.setdefault(image.asked, []).append(picture)
    columns = min(len(opened), max(4, round(len(opened) ** 0.5)))
    several = len(opened) > len(entries)
    sheet = contact_sheet([*entries.values()], texts=[*entries]) if several else contact_sheet(in_rows(opened, columns))
    save_image(sheet, made.folder / SHEET_FILE)
    more = f"; the first {_IN_SHEET:,} are shown" if len(made.images) > _IN_SHEET else ""
    settings = made.settings
    lead = f"{len(made.images):,} images by {settings['generator']}, seed {settings['seed']}, "
    lead += f"{settings['sampling_steps']} steps, guidance {settings['guidance']:g}{more}."
    save_page(made.folder / PAGE_FILE, "Generated images", lead, list(entries.items()))


def _make(
    generator: ImageGenerator,
    prompts: Sequence[tuple[str, str | None]],
    vectors: Matrix,
    modality: str,
    from_texts: bool,
    n: int,
    settings: dict[str, Any],
    folder: Path,
    reporter: Reporter,
) -> GeneratedImages:
    """Sample and write the images that do not exist yet."""
    images: list[GeneratedImage] = []
    rows: dict[str, int] = {}  # of the vectors, by the names of files
    plain = {**settings, "generator": generator.fingerprint(), "modality": modality}
    for row, (asked, key) in enumerate(prompts):
        subject = asked if from_texts else digest_of(vectors[row])
        slug = _SLUG.sub("-", Path(asked).stem.lower() if modality == "image" else asked.lower()).strip("-")
        for number in range(n):
            digest = digest_of(plain, asked, subject, number)[:8]
            file = f"{slug[:48].strip('-') or 'image'}-{digest}.png"
            images.append(GeneratedImage(file, asked, key, number))
            rows[file] = row
    made = GeneratedImages(folder, images, modality, settings)
    folder.mkdir(parents=True, exist_ok=True)
    write_json_atomically(folder / LIST_FILE, made.to_dict())
    wanted = {image.file: image for image in images}
    pending = [image for image in wanted.values() if not (folder / image.file).is_file()]
    if len(pending) < len(wanted):
        reporter.message(f"{len(wanted) - len(pending):,} images already exist.")
    done = 0
    kept = telling_what_is_kept(
        lambda: f"{done:,} images are kept in {folder}; run the same command again to make the others."
    )
    with kept, reporter.progress("Generating images", len(pending)) as progress:
        for start in range(0, len(pending), _BLOCK):
            block = pending[start : start + _BLOCK]
            sampled = generator.sample(
                vectors[[rows[image.file] for image in block]],
                modality,
                [(image.asked, image.number) for image in block],
                seed=settings["seed"],
                steps=settings["sampling_steps"],
                guidance=settings["guidance"],
                advance=progress.advance,
            )
            for image, picture in zip(block, sampled, strict=True):
                save_image(picture, folder / image.file)
                done += 1
    return made


def _vectors(
    source: str | Path | npt.NDArray[np.float32], modality: str, key: str | None, generator: ImageGenerator
) -> Matrix:
    """Return embeddings that are given, or those of a file or a store, float32 (n, d).

    Raises:
        GeneratorError: if there are none, they are not finite rows, or they are not the generator's.
        StoreError: if they cannot be read.
    """
    if isinstance(source, np.ndarray):
        vectors = np.atleast_2d(np.asarray(source, dtype=np.float32))
    else:
        rows, model = read_rows(source, modality, key)
        generator.check_model(model, rows.embeddings.shape[1])
        vectors = rows.embeddings
    if vectors.ndim != 2 or not len(vectors) or not np.isfinite(vectors).all():
        raise GeneratorError(
            f"Embeddings must be finite and of shape (n, d); these have shape {vectors.shape} or contain NaN or "
            "infinity."
        )
    generator.check_dim(vectors.shape[1])
    return vectors
