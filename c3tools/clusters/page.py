"""The page of clusters: a map, and the photos and texts nearest to each centroid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib import colormaps
from matplotlib.colors import to_hex

from ..arrays import Matrix
from ..clustering.cross_centroids import nearest_centroids
from ..curation.pictures import NO_PATH, pictures_of
from ..pages import close_up, figure_svg, new_figure, palette, render_page, styled
from ..reporter import counted
from .summary import ClusteredRows

_SHOWN_CLUSTERS = 60
_NUMBERED_CLUSTERS = 20  # on the map
_SHOWN_PHOTOS = 4
_SHOWN_TEXTS = 3
_DOTS = 1_500  # of a modality
_TEMPLATE = Path(__file__).parent / "templates" / "clusters.html"
_COLOURS = [to_hex(colour) for colour in colormaps["tab20"].colors]  # type: ignore[attr-defined]


def clusters_page(
    explanation: Sequence[str],
    summary: Sequence[Mapping[str, Any]],
    clustered: Mapping[str, ClusteredRows],
    sample: Mapping[str, Matrix],
    deciding: Mapping[str, Matrix],
    *,
    beside: Path,
) -> str:
    """Return the page as HTML.

    Args:
        explanation: the verdict, in sentences.
        summary: of each cluster; see `summarise`.
        clustered: by modality, all rows.
        sample: by modality, rows of the map, after the pipeline: float32 (n, d).
        deciding: by modality, the centroids that decide on its rows, float32 (k, d).
        beside: the store, beside which photos are looked for.
    """
    largest = sorted(summary, key=lambda entry: -sum(entry["rows"].values()))[:_SHOWN_CLUSTERS]
    numbers = [entry["cluster"] for entry in largest]

    # The rows that are nearest to each centroid, of each modality
    central: dict[str, dict[int, list[dict[str, Any]]]] = {}
    paths: list[str | None] = []
    for name, rows in clustered.items():
        by_cluster = np.lexsort((-rows.cosines, rows.labels))
        starts = np.searchsorted(rows.labels[by_cluster], np.arange(len(summary) + 1))
        most = _SHOWN_TEXTS if name == "text" else _SHOWN_PHOTOS
        central[name] = {}
        for number in numbers:
            nearest = by_cluster[starts[number] : starts[number + 1]][:most]
            central[name][number] = rows.table.take(nearest).to_pylist()
            if name != "text":
                paths += [row.get("path") for row in central[name][number]]
    pictures = pictures_of(paths, beside)

    # What the page shows of each cluster
    shown = []
    for entry in largest:
        number = entry["cluster"]
        photos = []
        texts = []
        for name, rows_of_cluster in central.items():
            for row in rows_of_cluster[number]:
                if name == "text":
                    texts.append(row.get("caption") or row["key"])
                else:
                    picture = pictures.get(row.get("path") or "", NO_PATH)
                    photos.append({**vars(picture), "key": row["key"]})
        sizes = [counted(count, name) for name, count in entry["rows"].items()]
        if entry["pairs_together"] is not None:
            sizes.append(counted(entry["pairs_together"], "pair together", "pairs together"))
        colour = _COLOURS[number % len(_COLOURS)]
        shown.append(
            {**entry, "photos": photos, "texts": texts, "sizes": ", ".join(sizes), "colour": colour}
        )
    names = " and ".join(clustered)
    return render_page(
        _TEMPLATE,
        title=f"{counted(len(summary), 'cluster')} of {names} rows",
        explanation=explanation,
        map=_draw_map(sample, deciding, numbers[:_NUMBERED_CLUSTERS]),
        clusters=shown,
        more=len(summary) - len(shown),
    )


@styled
def _draw_map(
    sample: Mapping[str, Matrix], deciding: Mapping[str, Matrix], numbered: Sequence[int]
) -> Markup:
    """Draw the rows in the plane in which the means of the clusters differ most."""
    # The plane: the first two principal components of the means
    drawn = {name: rows[:_DOTS] for name, rows in sample.items()}
    labels = {name: nearest_centroids(rows, deciding[name]) for name, rows in drawn.items()}
    all_rows = np.concatenate(list(drawn.values())).astype(np.float64)
    all_labels = np.concatenate(list(labels.values()))
    mean_of = {label: all_rows[all_labels == label].mean(axis=0) for label in np.unique(all_labels)}
    means = np.stack(list(mean_of.values()))
    middle = means.mean(axis=0)
    _, directions = np.linalg.eigh((means - middle).T @ (means - middle))  # ascending
    plane = directions[:, :-3:-1].T  # (2, d)

    # The rows, coloured by cluster, and the numbers of the largest clusters at their means
    figure, axes = new_figure(width=5.2, height=3.6)
    for name, marker in zip(drawn, "o+", strict=False):
        x, y = plane @ (drawn[name] - middle).T
        colours = [_COLOURS[label % len(_COLOURS)] for label in labels[name]]
        axes.scatter(x, y, s=8, c=colours, marker=marker, linewidths=0.8, label=name)
    for cluster in numbered:
        if cluster in mean_of:
            x, y = plane @ (mean_of[cluster] - middle)
            axes.text(x, y, str(cluster), color=palette.INK, weight="bold", ha="center")
    close_up(axes, ticks=False)
    legend = axes.legend(loc="upper right")
    for handle in legend.legend_handles:
        handle.set_color(palette.MUTED)
    return figure_svg(figure, name="map", label="Map of the rows, coloured by cluster")
