"""The interface of backends, which run the two towers of a model, and the sizes of their batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, Literal, Protocol, TypeVar

from ...arrays import Matrix
from ...devices import Compute

Modality = Literal["image", "text"]
Label = TypeVar("Label")

# beyond these a GPU gains nothing, and images in flight cost memory; a CPU is as fast with few, which stay in its cache
LARGEST = {"image": 256, "text": 1024}
ON_CPU = {"image": 32, "text": 128}
# a batch is full up to these sizes, and proportionally smaller for larger inputs
USUAL_PIXELS = 224 * 224
USUAL_TEXT_LENGTH = 16  # tokens


class Pending(Protocol):
    """A batch that is being computed."""

    def result(self) -> Matrix:
        """Wait for the unit vectors, float32 (n, d)."""


class Backend(ABC):
    """A way to run the two towers of a model.

    Attributes:
        name: ``torch``, ``openvino`` or ``onnx``.
        compute: device and precision.
        ahead: batches to submit before the first is waited for.
        compiled: whether the towers run through `torch.compile`.
    """

    name: str
    compute: Compute
    ahead: int = 0
    compiled: bool = False

    @abstractmethod
    def submit(self, modality: Modality, batch: Any) -> Pending:
        """Start a batch: pixels, uint8 (n, height, width, 3), or tokens, int64 (n, length); arrays or torch tensors."""

    def run(self, modality: Modality, batches: Iterable[tuple[Label, Any]]) -> Iterator[tuple[Label, Matrix]]:
        """Yield the vectors of labelled batches, in order; as many as are computed at a time are read ahead."""
        running: deque[tuple[Label, Pending]] = deque()
        for label, batch in batches:
            running.append((label, self.submit(modality, batch)))
            if len(running) > self.ahead:
                done, pending = running.popleft()
                yield done, pending.result()
        for done, pending in running:
            yield done, pending.result()

    def batch_size(self, modality: Modality, pixels: int) -> int:
        """Return how many images of so many pixels, or texts, are run at a time.

        It decides the last bits of the result, so it follows from the model and the device alone, never from a clock.
        """
        most = ON_CPU[modality]
        return largest_batch(pixels, most * USUAL_PIXELS, most) if modality == "image" else most


def largest_batch(per_input: int, available: int, largest: int) -> int:
    """Return the largest power of two, at least 1 and at most ``largest``, whose inputs fit into ``available``."""
    fit = max(1, min(largest, available // per_input))
    return 1 << (fit.bit_length() - 1)
