"""The choice among the backends in the table."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import ClassVar

import pytest

from c3tools.devices import Compute
from c3tools.encoders import backends, openvino_backend
from c3tools.encoders.backend import EncoderBackend
from c3tools.encoders.backends import fitting_backends
from c3tools.encoders.torch_backend import TorchBackend
from c3tools.errors import C3Error, EncoderError, MissingExtraError

CPU = Compute("cpu", "fp32")


class Fast(EncoderBackend):
    """A backend for CPUs; ``installed`` says whether its library is there."""

    name = "fast"
    devices = "CPUs, in fp32 or int8"
    module = "fast_runtime"
    extra = "fast"
    installed: ClassVar[bool] = True

    @classmethod
    def is_installed(cls) -> bool:
        return cls.installed

    @classmethod
    def runs_on(cls, device_type: str) -> bool:
        return device_type == "cpu"

    @classmethod
    def precisions(cls) -> tuple[str, ...]:
        return ("fp32", "int8")


@pytest.fixture(autouse=True)
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "BACKENDS", {"fast": Fast, "torch": TorchBackend})


@pytest.mark.parametrize(
    ("name", "compute", "precision", "expected"),
    [
        ("auto", CPU, "auto", [Fast, TorchBackend]),
        ("auto", CPU, "int8", [Fast]),
        ("auto", CPU, "bf16", [TorchBackend]),
        ("auto", Compute("cuda:1", "bf16"), "auto", [TorchBackend]),
        ("torch", CPU, "auto", [TorchBackend]),
        ("fast", CPU, "fp32", [Fast]),
    ],
)
def test_backends_that_fit_in_the_order_of_the_table(
    name: str, compute: Compute, precision: str, expected: list[type[EncoderBackend]]
) -> None:
    assert fitting_backends(name, compute, precision) == expected


def test_auto_passes_over_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Fast, "installed", False)
    assert fitting_backends("auto", CPU, "auto") == [TorchBackend]


@pytest.mark.parametrize(("name", "precision"), [("fast", "auto"), ("auto", "int8")])
def test_what_is_needed_and_not_installed_is_named_with_its_extra(
    name: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Fast, "installed", False)
    with pytest.raises(MissingExtraError, match=r"(?s)The backend fast .*install"):
        fitting_backends(name, CPU, precision)


@pytest.mark.parametrize(
    ("name", "compute", "precision"),
    [("fast", Compute("cuda", "bf16"), "auto"), ("fast", CPU, "bf16"), ("torch", CPU, "int8")],
)
def test_a_backend_that_does_not_fit_is_refused_with_those_there_are(
    name: str, compute: Compute, precision: str
) -> None:
    message = f"(?s){name} does not compute in {precision} on {compute.device}.*fast.*CPUs.*torch"
    with pytest.raises(EncoderError, match=message):
        fitting_backends(name, compute, precision)


def test_an_unknown_name_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(C3Error, match=r"(?s)'slow'.*auto, fast, torch"):
        fitting_backends("slow", CPU, "auto")


def test_ctrl_c_while_openvino_is_imported_is_an_interrupt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # OpenVINO's own module in C++ answers the exception of Ctrl-C like this
    (tmp_path / "openvino.py").write_text(
        "import signal\n"
        "try:\n"
        "    signal.raise_signal(signal.SIGINT)\n"
        "except KeyboardInterrupt as error:\n"
        "    raise ImportError('initialization failed') from error\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "openvino", None)
    del sys.modules["openvino"]
    monkeypatch.setitem(sys.modules, "openvino_telemetry", None)
    with pytest.raises(KeyboardInterrupt):
        openvino_backend._openvino()
