"""A training's curves as a picture, from the rows of its training.jsonl."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

# title, unit, and the key of each line in the rows of a kind
PANELS = (
    ("loss", "nats; held out: the margin's alone", (("train", "loss"), ("held_out", "loss"))),
    ("margin", "beta x nats", (("train", "margins"), ("held_out", "margin"))),
    (
        "accuracy",
        "share of pairs with a positive margin",
        (("train", "accuracies"), ("held_out", "accuracy")),
    ),
    (
        "log-probability of the texts",
        "nats",
        (
            ("train", "logps/chosen"),
            ("train", "logps/rejected"),
            ("held_out", "chosen"),
            ("held_out", "rejected"),
        ),
    ),
)


def draw(rows: Sequence[dict[str, Any]], path: Path, title: str) -> None:
    """Writes a PNG: loss, margin, accuracy and log-probabilities by step, training as lines, held out as
    dots."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(10, 7), constrained_layout=True)
    for panel, (name, unit, lines) in zip(axes.flat, PANELS, strict=True):
        for kind, key in lines:
            points = [(r["step"], r[key]) for r in rows if r["kind"] == kind and key in r]
            if points:
                what = f" {key.removeprefix('logps/')}" if len(lines) > 2 else ""
                style = {"marker": "o", "linestyle": ":"} if kind == "held_out" else {}
                panel.plot(*zip(*points, strict=True), label=kind.replace("_", " ") + what, **style)
        panel.set(title=name, xlabel="step", ylabel=unit)
        panel.grid(alpha=0.3)
        if panel.has_data():
            panel.legend(fontsize="small")
    figure.suptitle(title)
    figure.savefig(path, dpi=110, format="png")
    pyplot.close(figure)
