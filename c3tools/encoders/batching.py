"""How many inputs are run at a time.

The size decides the last bits of the result, so it follows from the model and the device alone, never from a clock.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

# beyond these a GPU gains nothing, and images in flight cost memory; a CPU is as fast with few, which stay in its cache
LARGEST = {"image": 256, "text": 1024}
ON_CPU = {"image": 32, "text": 128}
_USUAL_PIXELS = 224 * 224  # of the images of a full batch on a CPU; of larger ones there are proportionally fewer
USUAL_TEXT_LENGTH = (
    16  # tokens up to which a batch of texts is full; longer ones come in proportionally smaller batches
)
_SHARE_OF_MEMORY = 0.5
_PROBES = (4, 8)


def find_batch_size(
    modality: str, device: torch.device, run: Callable[[str, int], None], pixels: int = _USUAL_PIXELS
) -> int:
    """Batch size of ``modality`` on ``device``.

    On a CUDA GPU the largest power of two whose activations take at most half of the card's memory, from two small
    runs, at most `LARGEST`; on other devices a constant, for images of more than 224 x 224 a smaller one.

    Args:
        run: runs the model on so many dummy inputs of the modality.
        pixels: height times width of the images that the model takes.
    """
    if device.type != "cuda":
        most = ON_CPU[modality]
        return fitting_batch(pixels, most * _USUAL_PIXELS, most) if modality == "image" else most
    few, more = (_peak_memory(device, lambda n=n: run(modality, n)) for n in _PROBES)  # type: ignore[misc]
    return fitting_batch(
        max(1, (more - few) // (_PROBES[1] - _PROBES[0])),
        int(_SHARE_OF_MEMORY * torch.cuda.get_device_properties(device).total_memory),
        LARGEST[modality],
    )


def fitting_batch(per_input: int, room: int, largest: int) -> int:
    """The largest power of two, at least 1 and at most ``largest``, whose inputs fit into ``room``."""
    fit = max(1, min(largest, room // per_input))
    return 1 << (fit.bit_length() - 1)


def _peak_memory(device: torch.device, run: Callable[[], None]) -> int:
    torch.cuda.reset_peak_memory_stats(device)
    run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device)
