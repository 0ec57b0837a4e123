"""Measure a classifier by the code that serves it: on the held-out cases of its training, or on any others.

Invariant: temperature and thresholds come from the validation cases of the training alone; whatever other cases say,
they say it of these, and nothing is fitted on them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imaging.cases import ClassifiedCase, load_picture
from imaging.classifier import Classifier
from imaging.config import JudgedConfig
from imaging.dataset_check import OnCase
from imaging.errors import ImagingError, TooFewCases
from imaging.judgement import Assessment, targets_of
from imaging.report.class_page import CaseResult, TargetResult, render_classes, surest_mistakes
from imaging.report.pictures import overview
from imaging.scores import confusion, reliability, scores_with_intervals, share_with_interval
from imaging.subgroups import subgroups
from pipelines.calibration import Applied, Asked, apply_calibration, calibrated
from pipelines.facts_alone import ByFacts, by_facts, facts_alone
from pipelines.predictions import class_rows
from pipelines.result import Measured, Result, of_side, provenance


def measure_classifier(
    classifier: Classifier,
    sides: dict[str, list[ClassifiedCase]],
    *,
    data: str,
    trained: Sequence[ClassifiedCase],
) -> Measured:
    """Calibrate on the validation cases, and measure each side with that calibration.

    Parameters
    ----------
    classifier
        A checkpoint without metrics.
    sides
        The cases for ``validation`` and, where there are any, ``test``.
    data
        What the pages call the data set.
    trained
        The training cases: what their facts alone (age, sex, view) teach is measured beside it.

    Returns
    -------
    Measured
        ``calibration`` (see `pipelines.calibration.calibrated`), and what `figures` gives for each side; a page a side.

    Raises
    ------
    InputRefused, SeveralSeries
        If a case cannot be read, or the classifier does not take it.
    """
    config = classifier.checkpoint.classifier()
    asked = {side: ask(classifier, cases) for side, cases in sides.items()}
    calibration = calibrated(config, asked["validation"])
    metrics: dict[str, Any] = {"calibration": calibration}
    pages = {}
    for side, answers in asked.items():
        applied = apply_calibration(config, answers, calibration)
        metrics[side] = figures(config, answers, applied, by_facts(config, trained, answers.cases))
        about = of_side(classifier.checkpoint, data, side, [case.name for case in answers.cases])
        pages[side] = class_page({**about, "calibration": calibration, **metrics[side]}, config, answers, applied)
    return Measured(metrics, pages)


def evaluate_classifier(
    classifier: Classifier, cases: Sequence[ClassifiedCase], *, data: str, on_case: OnCase | None = None
) -> Result:
    """Measure a checkpoint by its own calibration; a case that it cannot be asked about is told and left out."""
    config, own = classifier.checkpoint.classifier(), classifier.checkpoint.metrics.get("calibration") or {}
    answers, refused = ask_each(classifier, cases, on_case=on_case)
    names = [case.name for case in answers.cases] if answers else []
    metrics = {
        **provenance(classifier.checkpoint, data, names),
        "calibration": {key: value for key, value in own.items() if key != "familiar"},
        "cases": 0,
        "refused": [error.as_dict() for error in refused],
    }
    if answers is None:
        return Result(metrics, "", "", tuple(refused))
    applied = apply_calibration(config, answers, own)
    metrics |= figures(config, answers, applied)
    metrics["notes"] = unknowable(config, metrics)
    rows = class_rows(results_of(config, answers, applied), config)
    return Result(metrics, rows, class_page(metrics, config, answers, applied), tuple(refused))


def ask(classifier: Classifier, cases: Sequence[ClassifiedCase]) -> Asked:
    """What a classifier says of some cases before any calibration.

    Raises
    ------
    InputRefused, SeveralSeries
        If a case cannot be read, or the classifier does not take it.
    TooFewCases
        If there is none.
    """
    answers, refused = ask_each(classifier, cases)
    for error in refused:
        raise error
    if answers is None:
        raise TooFewCases("cases", seen="none", expected="at least one was expected", remedy="Add cases")
    return answers


def ask_each(
    classifier: Classifier, cases: Sequence[ClassifiedCase], *, on_case: OnCase | None = None
) -> tuple[Asked | None, list[ImagingError]]:
    """What a classifier says of every case that it can be asked about, and why it cannot of the others."""
    answers, taken, refused = [], [], []
    for number, case in enumerate(cases):
        if on_case:
            on_case(case.name, number, len(cases))
        try:
            answers.append(classifier.ask(load_picture(case)))
        except ImagingError as error:
            refused.append(error)
        else:
            taken.append(case)
    if not answers:
        return None, refused
    classes = [item.name for item in classifier.checkpoint.classifier().classes]
    asked = Asked(
        taken,
        np.array([[name in case.classes for name in classes] for case in taken], dtype=np.bool_),
        np.stack([answer.logits_K for answer in answers]),
        np.stack([answer.thumbnail for answer in answers]),
        frozenset(number for number, answer in enumerate(answers) if answer.novelty),
    )
    return asked, refused


def figures(
    config: JudgedConfig, answers: Asked, applied: Applied, said_by_facts: ByFacts | None = None
) -> dict[str, Any]:
    """Every figure of some cases.

    Parameters
    ----------
    config
        The classifier's.
    answers, applied
        What its network said of the cases, and what its calibration makes of that.
    said_by_facts
        What their facts alone say of the same cases; not known for a checkpoint that is measured on others' cases.

    Returns
    -------
    dict
        ``cases``, ``patients``, ``scores`` (for each target its figures with 95 % bootstrap intervals over patients),
        ``indeterminate`` and ``wrong`` (see `promises`; the other figures count the indeterminate ones by the threshold
        alone), with softmax ``likeliest_accuracy`` (how often the likeliest class is the true
        one) and ``likeliest`` (how often which class was taken for which: a row a true class, a column a likeliest
        one), ``confusion`` and ``reliability`` of each target, where the cases have facts ``facts_alone``,
        ``subgroups`` and ``each`` (truth and probability of every class in every case).
    """
    everyone = np.arange(len(answers.cases))
    patients = [case.patient for case in answers.cases]
    truth_NK, probability_NK = answers.truth_NK, applied.probability_NK
    alone = facts_alone(config, answers.cases, truth_NK, probability_NK, said_by_facts) if said_by_facts else None
    return {
        **_measured(config, answers, applied, everyone),
        **promises(config, truth_NK, applied, patients),
        **_counted(config, answers, applied),
        **({"facts_alone": alone} if alone else {}),
        "subgroups": {
            name: _measured(config, answers, applied, chosen) for name, chosen in subgroups(answers.cases).items()
        },
        "each": {
            case.name: {"classes": list(case.classes), "probability": [round(float(p), 5) for p in row]}
            for case, row in zip(answers.cases, probability_NK, strict=True)
        },
    }


def promises(
    config: JudgedConfig, truth_NK: NDArray[np.bool_], applied: Applied, patients: Sequence[str]
) -> dict[str, Any]:
    """How often nothing is said of a target that is judged, and how often what it is not.

    Returns
    -------
    dict
        ``indeterminate``, the share that is called neither normal nor abnormal; ``wrong``, the share that is called
        what it is not, of ``all`` cases, of the ``normal`` and of the ``abnormal`` ones: what
        ``calibrate.error_rate`` bounds. Each with its interval.
    """
    told: dict[str, Any] = {"indeterminate": {}, "wrong": {}}
    for target in targets_of(config):
        if not target.abnormal:
            continue
        undecided_N, threshold_N = applied.undecided[target.name], applied.thresholds[target.name]
        truth_N, probability_N = target.truth(truth_NK), target.probability(applied.probability_NK)
        wrong_N = ~undecided_N & ((probability_N >= threshold_N) != truth_N)
        told["indeterminate"][target.name] = share_with_interval(undecided_N, patients).as_dict()
        told["wrong"][target.name] = {
            name: share_with_interval(
                wrong_N[chosen_N], [one for one, there in zip(patients, chosen_N.tolist(), strict=True) if there]
            ).as_dict()
            for name, chosen_N in (("all", truth_N | True), ("normal", ~truth_N), ("abnormal", truth_N))
            if chosen_N.any()
        }
    return told


def _counted(config: JudgedConfig, answers: Asked, applied: Applied) -> dict[str, Any]:
    """How many cases were called what, and how often what was probable was true."""
    found: dict[str, Any] = {"confusion": {}, "reliability": {}}
    for target in targets_of(config):
        truth, probability = target.truth(answers.truth_NK), target.probability(applied.probability_NK)
        threshold_N = applied.thresholds[target.name]
        counts = None if np.isnan(threshold_N).any() else asdict(confusion(truth, probability >= threshold_N))
        found["confusion"][target.name] = counts
        found["reliability"][target.name] = [
            {key: round(value, 5) if isinstance(value, float) else value for key, value in asdict(bin_).items()}
            for bin_ in reliability(truth, probability)
        ]
    if config.output == "softmax":
        true_N, said_N = answers.truth_NK.argmax(axis=1), applied.probability_NK.argmax(axis=1)
        names = [item.name for item in config.classes]
        counts_KK = np.zeros((len(names), len(names)), dtype=int)
        np.add.at(counts_KK, (true_N, said_N), 1)
        found["likeliest"] = {"classes": names, "counts": counts_KK.tolist()}
    return found


def unknowable(config: JudgedConfig, found: Mapping[str, Any]) -> list[str]:
    """In words, which figures some cases cannot show; `found` is what `figures` gives."""
    told = []
    for target in targets_of(config):
        true_cases = found["scores"][target.name]["true_cases"]
        if not true_cases:
            told.append(f"no case has {target.name}: its AUC, AUPRC and sensitivity cannot be known")
        elif true_cases == found["cases"]:
            told.append(f"every case has {target.name}: its AUC and specificity cannot be known")
        if target.abnormal and found["confusion"][target.name] is None:
            told.append(f"the checkpoint has no threshold for {target.name}: no case is called normal or abnormal")
    return told


def _measured(config: JudgedConfig, answers: Asked, applied: Applied, chosen: NDArray[np.int64]) -> dict[str, Any]:
    """All figures of some of the cases."""
    patients = [answers.cases[i].patient for i in chosen]
    truth_NK, probability_NK = answers.truth_NK[chosen], applied.probability_NK[chosen]
    measured: dict[str, Any] = {"cases": len(chosen), "patients": len(set(patients)), "scores": {}}
    for target in targets_of(config):
        truth_N = target.truth(truth_NK)
        found = scores_with_intervals(
            truth_N, target.probability(probability_NK), applied.thresholds[target.name][chosen], patients
        )
        told = {name: figure.as_dict() for name, figure in found.items()}
        measured["scores"][target.name] = {"true_cases": int(truth_N.sum()), **told}
    if config.output == "softmax":
        right_N = probability_NK.argmax(axis=1) == truth_NK.argmax(axis=1)
        measured["likeliest_accuracy"] = share_with_interval(right_N, patients).as_dict()
    return measured


def results_of(config: JudgedConfig, answers: Asked, applied: Applied) -> list[CaseResult]:
    """What is said of each case, as serving would say it."""
    targets: dict[str, list[TargetResult]] = {}
    for target in targets_of(config):
        undecided_N = applied.undecided.get(target.name, np.ones(len(answers.cases), dtype=np.bool_))
        targets[target.name] = [
            TargetResult(truth, p, None if np.isnan(t) else t, _assessed(p, t, undecided=undecided))
            for truth, p, t, undecided in zip(
                target.truth(answers.truth_NK).tolist(),
                target.probability(applied.probability_NK).tolist(),
                applied.thresholds[target.name].tolist(),
                undecided_N.tolist(),
                strict=True,
            )
        ]
    return [
        CaseResult(
            case.name,
            case.classes,
            {item.name: float(applied.probability_NK[number, item.id]) for item in config.classes},
            {name: found[number] for name, found in targets.items()},
        )
        for number, case in enumerate(answers.cases)
    ]


def _assessed(probability: float, threshold: float, *, undecided: bool) -> Assessment:
    if undecided:
        return "indeterminate"
    return "abnormal" if probability >= threshold else "normal"


def class_page(metrics: Mapping[str, Any], config: JudgedConfig, answers: Asked, applied: Applied) -> str:
    """The page, with the pictures of the surest mistakes; only these are read again."""
    results = results_of(config, answers, applied)
    wrong = {found.name for target in targets_of(config) for found in surest_mistakes(results, target.name)}
    pictures = {
        case.name: overview(load_picture(case))
        for case in answers.cases
        if case.name in wrong and isinstance(case, ClassifiedCase)
    }
    return render_classes(metrics, config, results, pictures)
