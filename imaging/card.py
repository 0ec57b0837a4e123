"""The model card of a checkpoint: what it is for, on what it was trained, how well it does, and where it ends.

Invariant: every number in it comes from the checkpoint's metrics.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from imaging.config import AnyConfig, FuseConfig, FusedImage, FusedText, JudgedConfig, SegmentConfig, TextConfig
from imaging.interval import Interval
from imaging.scores import TITLES

# The parts of metrics.json that hold figures of cases, and what the card calls them.
_SIDES = {"validation": "validation", "cross_validation": "cross-validation", "test": "test"}


def _measured(metrics: Mapping[str, Any]) -> list[str]:
    """Those of `_SIDES` that were measured."""
    return [side for side in _SIDES if side in metrics]


def _trained(metrics: Mapping[str, Any]) -> list[str]:
    """How many cases took which part, and which epoch was published."""
    training = metrics.get("training")
    if not training:
        return []
    if "folds" in training:
        return _cross_validated(metrics, training)
    held = ", ".join(f"{metrics[side]['cases']} for {side}" for side in ("validation", "test") if side in metrics)
    weights = f"; the weights are those of {_epoch(training)}" if "epochs" in training else ""
    return [
        f"{training['cases']} cases for training, {held}{weights}. `metrics.json` names the cases.",
        "",
        *_begun(training),
    ]


def _begun(training: Mapping[str, Any]) -> list[str]:
    """What the weights were before the training; their licence may bind these."""
    start = training.get("start")
    if not start:
        return []
    share = f"{100 * start['taken_share']:.1f} % of its weights"
    return [
        f"It began with {share} from the {start['kind']} `{start['name']}` (SHA-256 `{start['sha256']}`), whose licence"
        f" may bind these weights too.{_proving_nothing(start)}",
        "",
    ]


def _proving_nothing(start: Mapping[str, Any]) -> str:
    """Held-out cases that may have been learnt before the training began."""
    seen = start.get("held_out_seen")
    if not seen:
        return ""
    return (
        f" **{len(seen)} of the held-out cases have the names of cases that trained it: their figures prove nothing.**"
    )


def _cross_validated(metrics: Mapping[str, Any], training: Mapping[str, Any]) -> list[str]:
    """What the cross-validated figures are of, and what was published."""
    folds, side = training["folds"], metrics["cross_validation"]
    held = f"{side['cases']} cases of {side['patients']} patients"
    published = (
        f"This checkpoint is the mean of these {folds} networks, and the cross-validated figures are not its own: they"
        " are those of its members, each alone."
        if training["members"] > 1
        else "This checkpoint is the network of the first fold, which was not chosen by its figures; the"
        " cross-validated figures are those of all of them, each on its own part."
    )
    tested = (
        f" The {metrics['test']['cases']} test cases were asked of the checkpoint itself." if "test" in metrics else ""
    )
    return [
        f"Cross-validated with {folds} networks on {held}. {side['protocol']} They were trained for"
        f" {training['epochs']} epochs.",
        "",
        f"{published}{tested} `metrics.json` names the cases.",
        "",
        *_begun(training),
    ]


def _command(command: str, metrics: Mapping[str, Any]) -> str:
    """The config's command, with what made it a cross-validation."""
    training = metrics.get("training") or {}
    if "folds" not in training or "--folds" in command:
        return command
    single = " --publish single" if training["members"] == 1 else ""
    return f"{command} --folds {training['folds']}{single}"


def _over_folds(metrics: Mapping[str, Any], key: str, name: str, title: str) -> list[str]:
    """Mean and spread of a figure over the folds."""
    over = metrics.get("cross_validation", {}).get("over_folds", {}).get(key, {}).get(name)
    if not over or over["mean"] is None:
        return []
    spread = "" if over["sd"] is None else f" ± {over['sd']:.3f}"
    return ["", f"{title}, mean and standard deviation over the folds: {over['mean']:.3f}{spread}."]


def _epoch_is_unchosen(training: Mapping[str, Any]) -> bool:
    """Whether the validation cases had no part in which epoch was published."""
    return "last_epoch" in training and "early_stopping" not in training


def _epoch(training: Mapping[str, Any]) -> str:
    """Whose weights were published, and why these."""
    if _epoch_is_unchosen(training):
        return f"epoch {training['last_epoch']} of {training['epochs']}, the last: validation chose none"
    if "last_epoch" in training:
        return f"epoch {training['last_epoch']} of {training['epochs']}, the last: validation said when to end"
    return f"epoch {training['best_epoch']} of {training['epochs']}, the best on validation"


def _drawn(metrics: Mapping[str, Any]) -> str:
    """What the intervals were drawn over; earlier checkpoints say nothing of patients."""
    return "patients" if any("patients" in metrics.get(side, {}) for side in _SIDES) else "cases"


def _borders(config: SegmentConfig, metrics: Mapping[str, Any]) -> list[str]:
    """How far off the borders and the volumes are; checkpoints from before these were measured have none of it."""
    lines = []
    for side in _measured(metrics):
        part = metrics[side]
        for label in config.labels if "hd95_mm" in part else ():
            distance, share, error = (
                Interval(**part[score][label.name]) for score in ("hd95_mm", "surface_dice", "volume_error_percent")
            )
            lines.append(f"| {_SIDES[side]} | {label.title} | {distance} | {share} | {error} |")
    if not lines:
        return []
    tolerance = next(metrics[side]["tolerance_mm"] for side in _measured(metrics))
    return [
        "",
        "Borders: the 95th percentile Hausdorff distance, the share of the surfaces within"
        f" {tolerance:g} mm of each other, and the signed error of the volume.",
        "",
        "| cases | structure | HD95, mm | surface Dice | volume error, % |",
        "| --- | --- | --- | --- | --- |",
        *lines,
    ]


def model_card(config: AnyConfig, metrics: Mapping[str, Any]) -> str:
    """The README of a checkpoint: what it is for, on what it was trained, how well it does, and where it ends."""
    card = config.card
    lines = [
        f"# {config.title}",
        "",
        f"`{config.name}` version {config.version}. For research use, not for diagnosis.",
        "",
        f"**Intended use.** {card.intended_use}",
        "",
        f"**Limits.** {card.limits}",
        "",
        f"**Data and licence.** {card.data} {card.licence}",
        "",
        "**How it was trained.**",
        "",
        f"    {_command(card.command, metrics)}",
        "",
        *_trained(metrics),
        "## Measured",
        "",
        *_figures(config, metrics),
    ]
    return "\n".join([*lines, ""])


def _figures(config: AnyConfig, metrics: Mapping[str, Any]) -> list[str]:
    """What was measured, by what the checkpoint does."""
    if isinstance(config, SegmentConfig):
        return _overlap(config, metrics)
    if isinstance(config, FuseConfig):
        return _fused(config, metrics)
    judged = _discrimination(config, metrics) if config.classes else []
    return [*judged, *(_mentions(config, metrics) if isinstance(config, TextConfig) else [])]


def _mentions(config: TextConfig, metrics: Mapping[str, Any]) -> list[str]:
    """How well mentions are found."""
    parts = [side for side in _measured(metrics) if "spans" in metrics[side]]
    if not parts:
        return []
    lines = [
        "Mentions, strictly: right where both ends and the kind are as marked; with the 95 % bootstrap interval over",
        "sentences.",
        "",
        "| cases | sentences | kind | mentions | precision | recall | F1 |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for side in parts:
        for kind in config.kinds:
            found = metrics[side]["spans"][kind.name]
            cells = " | ".join(str(Interval(**found[name])) for name in ("precision", "recall", "f1"))
            lines.append(
                f"| {_SIDES[side]} | {metrics[side]['sentences']} | {kind.title} | {found['mentions']} | {cells} |"
            )
    return lines


def _fused(config: FuseConfig, metrics: Mapping[str, Any]) -> list[str]:
    """How well each set of parts tells cases apart, and which checkpoints the parts are asked of."""
    asked: list[FusedImage | FusedText] = [*config.images, *([config.text] if config.text else [])]
    lines = [
        "With the 95 % bootstrap interval over patients. The validation cases chose temperature, threshold and bounds,",
        "so only the test cases say how well it does. Any part may be missing: each set of parts has its own figures.",
        "",
        *(f"Brings together `{part.name}` with weights of SHA-256 `{part.weights_sha256}`." for part in asked),
    ]
    for side in _measured(metrics):
        lines += [
            "",
            f"| {_SIDES[side]} | cases | AUC | Brier | sensitivity | specificity | indeterminate |",
            "| --- | --- | --- | --- | --- | --- | --- |",
        ]
        for pattern, part in metrics[side]["patterns"].items():
            cells = [part["scores"][key] for key in ("auc", "brier", "sensitivity", "specificity")]
            shown = " | ".join(str(Interval(**cell)) for cell in [*cells, part["indeterminate"]])
            lines.append(f"| {pattern} | {part['cases']} | {shown} |")
    return lines


def _discrimination(config: JudgedConfig, metrics: Mapping[str, Any]) -> list[str]:
    """How well a classifier tells cases apart, how it was calibrated, and where it abstains."""
    chosen = "" if _epoch_is_unchosen(metrics.get("training", {})) else "epoch, the "
    lines = [
        "By the code that serves; with the 95 % bootstrap interval over patients. The validation cases chose the",
        f"{chosen}temperature and the threshold, so only the test cases say how well it does.",
    ]
    if "cross_validation" in metrics:
        lines = [
            "By the code that serves; with the 95 % bootstrap interval over patients. The temperature and the",
            "threshold that serve come from all cross-validated cases, by what single networks said of them.",
        ]
    calibration = metrics.get("calibration") or {}
    for name, threshold in (calibration.get("thresholds") or {}).items():
        parts = _measured(metrics)
        lines += [
            "",
            f"| {name} | " + " | ".join(f"{_SIDES[side]}, {metrics[side]['cases']} cases" for side in parts) + " |",
        ]
        lines += ["| --- |" + " --- |" * len(parts)]
        for key, title in TITLES.items():
            cells = [str(Interval(**metrics[side]["scores"][name][key])) for side in parts]
            lines.append(f"| {title} | " + " | ".join(cells) + " |")
        if threshold is not None:
            cases = "held-out" if "cross_validation" in metrics else "validation"
            goal = f"{calibration['sensitivity']:.0%} on {calibration['cases']} {cases} cases"
            lines += ["", f"Threshold for {name}: {threshold:.4f}, chosen for a sensitivity of at least {goal}."]
        for side in parts:
            share = metrics[side].get("indeterminate", {}).get(name)
            if share is not None:
                lines += ["", f"Share of the {_SIDES[side]} cases called indeterminate for {name}: {_share(share)}."]
            lines += _wrong(metrics, side, name)
        lines += _over_folds(metrics, name, "auc", f"AUC of {name}")
    lines += ["", f"Temperature on the logits: {calibration['temperature']}."] if calibration else []
    lines += _novelty(config, metrics)
    return [*lines, *_likeliest(config, metrics), *_beside_facts(metrics), *_by_group(metrics)]


def _wrong(metrics: Mapping[str, Any], side: str, name: str) -> list[str]:
    """How many cases are called what they are not, and what was promised."""
    found = metrics[side].get("wrong", {}).get(name)
    if not found:
        return []
    shares = ", ".join(f"{of} {Interval(**share)}" for of, share in found.items())
    bounds = (metrics.get("calibration") or {}).get("conformal", {}).get(name)
    each = " of the normal and of the abnormal ones each" if bounds and bounds["by_class"] else ""
    promise = f" The error rate that was asked for is {bounds['error_rate']:.0%}{each}." if bounds else ""
    return ["", f"Share of the {_SIDES[side]} cases called what they are not for {name}: {shares}.{promise}"]


def _novelty(config: JudgedConfig, metrics: Mapping[str, Any]) -> list[str]:
    """How strange cases are known, and how often usual ones are taken for strange."""
    told = metrics.get("novelty")
    if not told:
        return []
    shares = "; ".join(f"{_SIDES[side]} {Interval(**share)}" for side, share in told["flagged"].items())
    of = "texts" if config.task == "text" else "pictures"
    counted = "" if told["counted"] else " The shares called indeterminate above were measured before, without these."
    return [
        "",
        f"Knows {of} that are unlike its {told['cases']['train']} training cases by {', '.join(told['aspects'])}"
        f" (embedding: {told['embedding']}), and calls them indeterminate. Limits chosen so that"
        f" {told['false_flags']:.0%} of the validation cases are flagged at most; flagged: {shares}.{counted}",
    ]


def _share(told: Mapping[str, Any] | float) -> Interval:
    """A share with its interval; checkpoints from before there was one have the share alone."""
    return Interval(told, None, None) if isinstance(told, float | int) else Interval(**told)


def _beside_facts(metrics: Mapping[str, Any]) -> list[str]:
    """What age, sex and other facts of the cases say without the picture, and what the network adds to that."""
    parts = [side for side in _measured(metrics) if "facts_alone" in metrics[side]]
    if not parts:
        return []
    names = ", ".join(dict.fromkeys(name for side in parts for name in metrics[side]["facts_alone"]["facts"]))
    lines = [
        "",
        f"## Beside the facts alone: {names}",
        "",
        "AUC of the network, and on the same cases of a logistic regression on these facts, fitted on the cases that",
        "trained the network; the gain is the difference, its interval from the same resamples of patients for both.",
        "In cross-validation all three are within folds: what several networks said is not compared with each other.",
        "",
        "| cases | of | network | facts alone | gain |",
        "| --- | --- | --- | --- | --- |",
    ]
    for side in parts:
        for name, found in metrics[side]["facts_alone"]["scores"].items():
            network, facts, gain = (
                Interval(**value)
                for value in (found.get("network", metrics[side]["scores"][name]["auc"]), found["auc"], found["gain"])
            )
            lines.append(f"| {_SIDES[side]} | {name} | {network} | {facts} | {gain} |")
    return lines


def _likeliest(config: JudgedConfig, metrics: Mapping[str, Any]) -> list[str]:
    told = [side for side in _measured(metrics) if "likeliest_accuracy" in metrics[side]]
    if config.output != "softmax" or not told:
        return []
    shares = "; ".join(f"{_SIDES[side]} {Interval(**metrics[side]['likeliest_accuracy'])}" for side in told)
    return ["", f"Share of cases whose likeliest class is the true one: {shares}."]


def _by_group(metrics: Mapping[str, Any]) -> list[str]:
    """AUC, sensitivity and specificity of each subgroup of the test cases, or of the cross-validated ones."""
    side = "test" if "test" in metrics or "cross_validation" not in metrics else "cross_validation"
    groups = metrics.get(side, {}).get("subgroups") or {}
    if not groups:
        return []
    shown = ("auc", "sensitivity", "specificity")
    lines = [
        "",
        f"## Subgroups of the {_SIDES[side]} cases",
        "",
        "| group | n | of | AUC | sensitivity | specificity |",
    ]
    lines += ["| --- | --- | --- | --- | --- | --- |"]
    for group, part in groups.items():
        for name, figures in part["scores"].items():
            cells = " | ".join(str(Interval(**figures[key])) for key in shown)
            lines.append(f"| {group} | {part['cases']} | {name} | {cells} |")
    return lines


def _overlap(config: SegmentConfig, metrics: Mapping[str, Any]) -> list[str]:
    """How well a segmenter's masks fit, and how far its volumes may be trusted."""
    lines = [
        "Dice of the masks on each image's own grid, restored by the same code that serves; mean over cases with the",
        f"95 % bootstrap interval over {_drawn(metrics)}.",
        "",
        "| cases | n | " + " | ".join(label.title for label in config.labels) + " |",
        "| --- | --- |" + " --- |" * len(config.labels),
    ]
    for side in _measured(metrics):
        part = metrics[side]
        cells = [str(Interval(**part["dice"][label.name])) for label in config.labels]
        lines.append(f"| {_SIDES[side]} | {part['cases']} | " + " | ".join(cells) + " |")
    for label in config.labels:
        lines += _over_folds(metrics, "dice", label.name, f"Dice of {label.title}")
    lines += _borders(config, metrics)
    held_out = "held-out" if "cross_validation" in metrics else "validation"
    for label in config.labels:
        interval = (metrics.get("volume_interval") or {}).get(label.name)
        if interval:
            held = (
                f"; it held in {interval['held_on_test']:.0%} of the test cases" if "held_on_test" in interval else ""
            )
            lines += [
                "",
                f"{label.title}: the true volume lies between {interval['low']:.3f} and {interval['high']:.3f} times",
                f"the measured one with {interval['coverage']:.0%} coverage (conformal, from {held_out} cases{held}).",
            ]
    return lines
