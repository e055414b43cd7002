"""A figure of a training: loss by step, validation by epoch, and the kept checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ..pages import new_figure, palette, save_figure, styled

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
    trace, history, best, start = (record[name] for name in ("trace", "history", "best_val_loss", "start_val_loss"))
    per_epoch = trace[-1][0] / len(history)
    points = [(epoch["epoch"] * per_epoch, epoch["val_loss"]) for epoch in history]
    points = points if start is None else [(0, start), *points]
    kept = next(point for point in points if point[1] == best)
    axes.plot(*zip(*trace, strict=True), color=palette.FIRST, linewidth=1.0, label="training")
    axes.plot(*zip(*points, strict=True), "o-", color=palette.SECOND, markersize=4, label=_MONITORS[record["monitor"]])
    axes.plot(*kept, "o", color=palette.SECOND, markersize=8, label=f"kept: {best:.3f}")
    axes.set_title(f"{record['preset']}, sigma {record.get('sigma', 0):.3g}")
    axes.set_xlabel("step")
    axes.set_ylabel("1 - cosine with the image" if record["monitor"] == "reward" else "loss, nats per token")
    axes.legend()
    return figure


def save_curves(record: Mapping[str, Any], folder: Path) -> None:
    """Draw the curves of a record into the folder of its decoder."""
    save_figure(training_curves(record), folder / CURVES_FILE)
