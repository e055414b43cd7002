"""A figure of a training: loss by step, validation by epoch, and the kept checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ..pages import palette
from ..pages.figures import new_figure, save_figure, styled

CURVES_FILE = "curves.png"
_MONITORS = {
    "text": "validation: texts, no noise",
    "cross-modal": "validation: images of pairs",
    "reward": "validation: other images",
}


@styled
def training_curves(record: Mapping[str, Any]) -> Figure:
    """Draw the losses of a captioner's record (``history``, ``trace``, ``best_val_loss``, ``monitor``)."""
    figure, axes = new_figure(6.4, 3.4)
    history = record["history"]
    trace = record.get("trace") or []
    last = trace[-1][0] if trace else len(history)
    planned = max(len(history), 1)
    ends = [last * epoch["epoch"] / planned for epoch in history]
    if trace:
        axes.plot(*zip(*trace, strict=True), color=palette.FIRST, linewidth=1.0, label="training")
    else:
        axes.plot(ends, [epoch["train_loss"] for epoch in history], color=palette.FIRST, label="training")
    losses = [epoch["val_loss"] for epoch in history]
    if record.get("start_val_loss") is not None:
        ends, losses = [0, *ends], [record["start_val_loss"], *losses]
    label = _MONITORS.get(str(record.get("monitor")), "validation")
    axes.plot(ends, losses, "o-", color=palette.SECOND, markersize=4, label=label)
    best = record["best_val_loss"]
    kept = ends[losses.index(best)]
    axes.plot(kept, best, "o", color=palette.SECOND, markersize=8)
    axes.annotate(
        f"kept: {best:.3f}",
        (kept, best),
        xytext=(-2 if kept else 6, 9),
        textcoords="offset points",
        ha="right" if kept else "left",
        color=palette.SECOND,
    )
    axes.set_title(f"{record.get('preset', 'decoder')}, sigma {record.get('sigma', 0):.3g}")
    axes.set_xlabel("step" if trace else "epoch")
    axes.set_ylabel("1 - cosine with the image" if record.get("monitor") == "reward" else "loss, nats per token")
    axes.legend()
    return figure


def save_curves(record: Mapping[str, Any], folder: Path) -> None:
    """Draw the curves of a record into the folder of its decoder."""
    save_figure(training_curves(record), folder / CURVES_FILE)
