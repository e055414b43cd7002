"""The card of what was trained: data, settings, scores."""

from __future__ import annotations

from typing import Any

from .heads import ConnectedHeads


def heads_card(heads: ConnectedHeads) -> str:
    """A card in Markdown."""
    record = heads.record
    features = " and ".join(f"{dim} features of {name}" for name, dim in record["features"].items())
    hidden = heads.shape.hidden
    kind = f"a perceptron with {hidden} hidden units" if hidden else "a linear map"
    rows = [
        ("heads", f"{kind} on {features}, to {heads.shape.dim} dimensions"),
        ("start in a cone", f"{heads.shape.cone:g} times the spread of the outputs" if heads.shape.cone else "no"),
        *training_rows(record),
    ]
    return "\n".join(["# Connected heads", "", *table(rows), "", *scores_table(record["scores"]), "", _USE])


def towers_card(name: str, record: dict[str, Any]) -> str:
    """A card in Markdown for an open_clip model."""
    start = record["start"]
    weights = f"random weights, seed {start['random_init']}" if start["random_init"] is not None else "its weights"
    head = " and the image tower's projection head, its trunk frozen" if record["image_head"] else ""
    lit = f"the text tower{head or ', towards the frozen image tower'}"
    trained = lit if record["mode"] == "lit" else "both towers"
    augmented = "; random parts of the photos, mirrored half the time" if record["augment"] else ""
    rows = [
        ("start", f"{start['name']}, {weights}"),
        ("trained", f"{trained}{augmented}"),
        ("photos", f"{record['photos']:,}, and {record['unreadable']:,} that could not be decoded"),
        *training_rows(record),
    ]
    use = f'`c3 embed PATH --model local-dir:{name}`, or `open_clip.create_model_and_transforms("local-dir:{name}")`.'
    return "\n".join([f"# {name}", "", *table(rows), "", *scores_table(record["scores"]), "", use, ""])


def training_rows(record: dict[str, Any]) -> list[tuple[str, str]]:
    """What a card says about the training."""
    settings = record["settings"]
    return [
        ("pairs", f"{record['pairs']['train']:,} to learn from, {record['pairs']['val']:,} to choose the checkpoint"),
        ("loss", f"{settings['loss']}, logit scale {settings['scale']} ({record['logit_scale']:.1f} in the end)"),
        (
            "training",
            f"batches of {settings['batch_size']:,}, AdamW at {settings['learning_rate']:g}, seed {settings['seed']}; "
            f"{record['outcome']} after {record['steps']:,} steps, step {record['kept_step']:,} kept; "
            f"{record['seconds']:,.0f} s",
        ),
    ]


def table(rows: list[tuple[str, str]]) -> list[str]:
    """Lines of a Markdown table without a header."""
    return ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]


def scores_table(scores: dict[str, Any]) -> list[str]:
    """Lines of a Markdown table of the geometry and recall of each scored split."""
    lines = ["| split | direction | recall@1 | recall@5 | recall@10 | gap | paired cosine | unpaired |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for role, score in scores.items():
        for direction, recall in score["recall"].items():
            cells = [f"{value:.3f}" for value in recall.values()]
            geometry = [f"{score[name]:.3f}" for name in ("gap", "paired_cosine", "unpaired_cosine")]
            lines.append(f"| {role} | {direction.replace('_to_', ' → ')} | {' | '.join([*cells, *geometry])} |")
    return lines


_USE = """\
`c3 connect apply` turns features of the same towers into a store that every command takes. In Python:
`ConnectedHeads.load(folder).embed("text", features)`.
"""
