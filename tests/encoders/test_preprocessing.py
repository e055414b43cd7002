from __future__ import annotations

from pathlib import Path

from PIL import Image

from c3tools.assets.paths import PHOTOS
from c3tools.encoders import Encoder
from c3tools.io.images import open_image


def test_extreme_sizes_are_preprocessed_and_only_their_middle_is_looked_at(
    tmp_path: Path, encoder: Encoder
) -> None:
    for size in ((1, 1), (20_000, 10), (10, 20_000), (3, 2)):
        middle = Image.new("RGB", (min(size[0], 16 * size[1]), min(size[1], 16 * size[0])), "white")
        image = Image.new("RGB", size)
        image.paste(middle, ((size[0] - middle.width) // 2, (size[1] - middle.height) // 2))
        image.save(tmp_path / "x.png")
        pixels, *known = encoder.preprocess.load(tmp_path / "x.png")
        assert (pixels.shape, pixels.min(), known) == ((352, 352, 3), 255, [*size])


def test_large_jpegs_decoded_at_a_lower_scale_embed_the_same(
    tmp_path: Path, encoder: Encoder
) -> None:
    with Image.open(next((PHOTOS / "images").iterdir())) as photo:
        photo.convert("RGB").resize((8000, 6000), Image.Resampling.BICUBIC).save(
            tmp_path / "x.jpg", quality=92
        )
    scaled, width, height = open_image(tmp_path / "x.jpg", (200, 350))
    assert (scaled.size, width, height) == ((1000, 750), 8000, 6000)
    a, b = encoder.encode_images([scaled, open_image(tmp_path / "x.jpg")[0]])
    assert a @ b >= 0.999
