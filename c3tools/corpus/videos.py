"""Videos: their frames at a rate, decoded by PyAV (the extra ``video``)."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from ..errors import MissingExtraError


def require_decoder() -> None:
    """Refuse to go on without PyAV.

    Raises:
        MissingExtraError: if it is not installed.
    """
    if importlib.util.find_spec("av") is None:
        raise MissingExtraError("av", extra="video", purpose="Embedding videos")


def read_frames(path: str | Path, fps: float, time_limit: float | None = None) -> Iterator[tuple[float, Image.Image]]:
    """Yield frames of a video and their times in seconds: the first one, and the first at or after each 1 / ``fps``.

    Frames are RGB images, turned as the video says. Sound and subtitles are not decoded.

    Args:
        path: a file.
        fps: frames per second; a video of fewer gives all that it has.
        time_limit: seconds that decoding may take until a frame is yielded.

    Raises:
        TimeoutError: if it takes longer.
        OSError, ValueError: if it is not a video, or damaged.
        MissingExtraError: if PyAV is not installed.
    """
    require_decoder()
    import av

    with av.open(str(path)) as container:
        if not container.streams.video:
            raise ValueError("there are no pictures in it")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        first: float | None = None
        wanted, began = 0, time.monotonic()
        for number, frame in enumerate(container.decode(stream)):
            if time_limit is not None and time.monotonic() - began > time_limit:
                raise TimeoutError(f"took longer than {time_limit:g} s to decode; --image-timeout allows more")
            at = frame.time if frame.time is not None else number / float(stream.average_rate or 1)
            first = at if first is None else first
            if (at - first) * fps >= wanted - 1e-6:
                wanted = int((at - first) * fps + 1e-6) + 1
                image: Image.Image = frame.to_image()  # type: ignore[no-untyped-call]
                turned = getattr(frame, "rotation", 0)
                yield at - first, image.rotate(turned, expand=True) if turned else image
                began = time.monotonic()
        if first is None:
            raise ValueError("no frame of it can be decoded")
