"""The encoder backends by name, and the choice among them."""

from __future__ import annotations

from ..devices import Compute
from ..errors import C3Error, EncoderError
from .backend import AUTO, EncoderBackend
from .openvino_backend import OpenVINOBackend
from .torch_backend import TorchBackend

# ``auto`` prefers those that come first.
BACKENDS: dict[str, type[EncoderBackend]] = {
    backend.name: backend for backend in (OpenVINOBackend, TorchBackend)
}


def fitting_backends(name: str, compute: Compute, precision: str) -> list[type[EncoderBackend]]:
    """Return the backends that can compute on a device in a precision, the preferred one first.

    Args:
        name: of one backend, or ``auto`` for all.
        compute: says the device.
        precision: as the user asked for it; ``auto`` for any.

    Raises:
        C3Error: for an unknown name.
        MissingExtraError: if a backend that is not installed is needed.
        EncoderError: if no backend fits.
    """
    if name not in (AUTO, *BACKENDS):
        names = ", ".join((AUTO, *BACKENDS))
        raise C3Error(f"There is no backend {name!r}.", remedy=f"Choose one of these: {names}.")
    candidates = [*BACKENDS.values()] if name == AUTO else [BACKENDS[name]]
    on_device = [backend for backend in candidates if backend.runs_on(compute.device_type)]
    fitting = [
        backend
        for backend in on_device
        if backend.is_installed() and precision in (AUTO, *backend.precisions())
    ]
    if fitting:
        return fitting
    for backend in reversed(on_device):  # the last runs the most models
        backend.require_installed()
    ways = [f"--backend {backend.name} ({backend.devices})" for backend in BACKENDS.values()]
    raise EncoderError(
        f"The backend {name} does not compute in {precision} on {compute.device}.",
        remedy=f"Use --precision auto, or another backend: {' or '.join(ways)}.",
    )
