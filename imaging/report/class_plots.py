"""How well probabilities tell cases apart and how far they can be believed, drawn: ROC, precision-recall, reliability.

Invariant: a curve is drawn from every case, by the arithmetic of `imaging.scores`; the numbers that stand beside it are
those of metrics.json. A curve that the cases cannot show is not drawn.

Shapes: N cases; ``truth`` bool (N,), ``probability`` float64 (N,).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from imaging.interval import Interval
from imaging.report.plots import Axis, Drawing, Plot
from imaging.scores import Probability, Truth, precision_recall_curve, roc_curve, wilson


def class_plots(
    title: str, truth: Truth, probability: Probability, figures: Mapping[str, Any], bins: Sequence[Mapping[str, Any]]
) -> list[Plot]:
    """What can be drawn of one target.

    Parameters
    ----------
    title
        What it is called.
    truth, probability
        Of every case.
    figures
        Its ``scores`` in metrics.json.
    bins
        Its ``reliability`` there.
    """
    plots = [roc_plot(title, truth, probability, figures)] if truth.any() and not truth.all() else []
    plots += [precision_recall_plot(title, truth, probability, figures)] if truth.any() else []
    return [*plots, reliability_plot(title, bins, figures)]


def roc_plot(title: str, truth: Truth, probability: Probability, figures: Mapping[str, Any]) -> Plot:
    """The ROC curve with the point at which the checkpoint works; there is a case on either side."""
    drawing = Drawing(Axis("1 \N{MINUS SIGN} specificity"), Axis("Sensitivity"))
    drawing.line([0, 1], [0, 1], "guide")
    drawing.line(*roc_curve(truth, probability))
    told = f"AUC {_figure(figures, 'auc')} over {len(truth)} cases, {int(truth.sum())} of them with {title}."
    sensitivity, specificity = figures["sensitivity"]["mean"], figures["specificity"]["mean"]
    if sensitivity is not None and specificity is not None:
        point = f"sensitivity {sensitivity:.3f}, specificity {specificity:.3f}"
        drawing.dot(1 - specificity, sensitivity, f"At the threshold: {point}", radius=5, kind="point")
        told += f" The point is where it works: {point}."
    return drawing.finished("ROC curve", told + " The dashed line is chance.")


def precision_recall_plot(title: str, truth: Truth, probability: Probability, figures: Mapping[str, Any]) -> Plot:
    """Precision at every sensitivity, in steps, with the point at which the checkpoint works."""
    drawing = Drawing(Axis("Recall (sensitivity)"), Axis("Precision (PPV)"))
    share = float(truth.mean())
    drawing.line([0, 1], [share, share], "guide")
    recall, precision, _ = precision_recall_curve(truth, probability)
    # The area under these steps is the AUPRC; straight lines between the points would promise more.
    xs = [0.0, *(x for value in recall.tolist() for x in (value, value))][:-1]
    ys = [y for value in precision.tolist() for y in (value, value)]
    drawing.line(xs, ys)
    told = f"AUPRC {_figure(figures, 'auprc')}; the dashed line is chance, {share:.3f}, the share with {title}."
    sensitivity, ppv = figures["sensitivity"]["mean"], figures["ppv"]["mean"]
    if sensitivity is not None and ppv is not None:
        point = f"recall {sensitivity:.3f}, precision {ppv:.3f}"
        drawing.dot(sensitivity, ppv, f"At the threshold: {point}", radius=5, kind="point")
        told += f" The point is where it works: {point}."
    return drawing.finished("Precision and recall", told)


def reliability_plot(title: str, bins: Sequence[Mapping[str, Any]], figures: Mapping[str, Any]) -> Plot:
    """The share that is true against the probability that was given, with how many cases each point stands for."""
    drawing = Drawing(Axis("Probability given"), Axis(f"Share with {title}" if len(title) < 24 else "Share true"))
    drawing.line([0, 1], [0, 1], "guide")
    most = max((part["cases"] for part in bins), default=0)
    for part in bins:
        if part["cases"]:
            drawing.bar(part["low"] + 0.012, part["high"] - 0.012, 0, 0.18 * part["cases"] / most)
    filled = [part for part in bins if part["cases"]]
    for part in filled:
        low, high = wilson(part["share"], part["cases"])
        drawing.line([part["probability"]] * 2, [low, high])
        counted = f"{part['cases']} case{'s' if part['cases'] > 1 else ''}"
        where = f"{counted} from {part['low']:.1f} to {part['high']:.1f}"
        given = f"probability {part['probability']:.3f} on average, {part['share']:.3f} true [{low:.3f}, {high:.3f}]"
        drawing.dot(part["probability"], part["share"], f"{where}: {given}", radius=4)
        # Above its bar, so that it is read wherever the point lies.
        middle = (part["low"] + part["high"]) / 2
        drawing.word(middle, 0.18 * part["cases"] / most, str(part["cases"]), dy=-4, kind="count")
    counts = "; ".join(
        f"{part['low']:.1f} to {part['high']:.1f}: {part['cases']} cases, {part['share']:.3f} true" for part in filled
    )
    told = f"ECE {_figure(figures, 'ece')}, Brier score {_figure(figures, 'brier')}. On the dashed line what is said is"
    told += " what is true; a line is the 95 % interval of a share as if no patient had two cases; bars and the numbers"
    told += " above them count cases."
    return drawing.finished("Reliability", told, more=f"By probability: {counts}.")


def _figure(figures: Mapping[str, Any], name: str) -> str:
    return str(Interval(**figures[name]))
