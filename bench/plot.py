"""The plots of docs/performance.md, out of the results of a run."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import yardstick

MATPLOTLIB = "matplotlib>=3.8,<4"
TICKS = (1, 1.5, 2, 3, 5, 10, 20, 50, 100)


def draw(results: list[dict[str, Any]], directory: Path) -> None:
    """Write yardstick.svg and scale.svg; matplotlib is installed for it where it is missing."""
    if not importlib.util.find_spec("matplotlib"):
        words = ["-m", "pip", "-qq", "--disable-pip-version-check", "install", MATPLOTLIB]
        subprocess.run([sys.executable, *words], check=True)
        importlib.invalidate_caches()
    import matplotlib as mpl  # type: ignore[import-not-found, unused-ignore]  # noqa: PLC0415

    mpl.use("svg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    directory.mkdir(parents=True, exist_ok=True)
    free = [one for one in results if "ratio" in one and one["mode"] == "free"]
    if free:
        _bars(plt, yardstick.means(free), directory / "yardstick.svg")
    curves = [one for one in results if "curve" in one]
    if curves:
        _curves(plt, curves, directory / "scale.svg")


def _bars(plt: Any, means: dict[str, dict[str, float]], path: Path) -> None:
    figure, axes = plt.subplots(1, len(means), figsize=(5 * len(means), 4), squeeze=False)
    for (group, by_label), axis in zip(means.items(), axes[0], strict=True):
        labels = [label for label in by_label if label != yardstick.BASE]
        colours = ["tab:orange" if label.startswith("fusebpf") else "tab:blue" for label in labels]
        axis.barh(labels, [by_label[label] for label in labels], color=colours)
        axis.set_xscale("log")
        axis.set_xticks(TICKS, [f"{tick:g}" for tick in TICKS])
        axis.set_xticks([], minor=True)
        axis.set_xlim(0.9, 1.1 * max(2, *by_label.values()))
        axis.axvline(1, color="black", linewidth=0.8)
        axis.invert_yaxis()
        axis.set_title(group)
        axis.set_xlabel("times slower than a bind mount")
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def _curves(plt: Any, curves: list[dict[str, Any]], path: Path) -> None:
    figure, axes = plt.subplots(1, len(curves), figsize=(4.5 * len(curves), 3.5), squeeze=False)
    for curve, axis in zip(curves, axes[0], strict=True):
        axis.plot([x for x, _ in curve["points"]], [y for _, y in curve["points"]], marker="o")
        if max(x for x, _ in curve["points"]) > 100:
            axis.set_xscale("log")
        axis.set_ylim(bottom=0)
        axis.set_title(curve["curve"], fontsize=9)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)
