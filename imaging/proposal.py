"""A data set's figures -> a config that a person can read, with the reason of each choice beside it.

Invariant: an ordinary config, which `imgpipe train` takes as it is; what the figures do not say is asked for or said
to be missing, not made up. Text of the data set stands in comments and values only as text. Imports no torch.
"""

from __future__ import annotations

import colorsys
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from imaging.dataset_check import Survey
from imaging.errors import ManifestInvalid, TooFewCases
from imaging.manifest import Case, Split, split_by_patient
from imaging.plan import Budget, Grid, NetworkPlan, epochs_for, plan_network, target_grid
from imaging.reasoned import Choice, Proposal, printable
from imaging.scaling import Scaling, scalings_of

_AXES = ("R-L", "A-P", "S-I")
# Okabe and Ito's colours, told apart by colour-blind readers too.
_COLOURS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7")
_ANATOMY = {"value": "91723000", "meaning": "Anatomical Structure"}
_TEST_FRACTION, _FOLDS = 0.15, 5
_WITH_TEST_PART = 20
# The share of nnU-Net's patches that is drawn around a structure.
_FOREGROUND = 0.33
# What says left or right as a word of its own.
_SIDES = frozenset(("l", "r", "lt", "rt", "lh", "rh"))
# How far beyond what was seen a series may go before the checkpoint refuses it.
_MARGIN = 1.25


def propose(survey: Survey, *, root: Path, name: str, modality: str = "", budget: Budget | None = None) -> Proposal:
    """Make a segmentation config for a data set.

    Parameters
    ----------
    survey
        The data set, looked through and without problems.
    root
        Where it lies; becomes ``data.root``.
    name
        The config file's name, for the model card's command.
    modality
        As DICOM's Modality (0008,0060) writes it, where the data set does not tell it.
    budget
        What training may take.

    Raises
    ------
    ManifestInvalid
        If nobody tells the modality.
    TooFewCases
        If there are fewer than two patients.
    ConfigInvalid
        If the smallest patch does not fit the budget.
    """
    budget = budget or Budget()
    modality = modality or survey.description.modality
    _check(survey, modality)
    split = _split(survey)
    grid = target_grid(survey.cases)
    trained = len(split.side.train)
    plan = plan_network(grid, classes=len(survey.structures) + 1, cases=trained, budget=budget)
    description, scalings = survey.description, scalings_of(survey, modality)
    own = _slug(description.name, "dataset")[:31]
    choices = [
        Choice("name", own),
        Choice("version", "0.1"),
        Choice("title", printable(f"{description.name}: {', '.join(survey.structures)}")[:200]),
        Choice("task", "segment"),
        *_applies_to(survey, modality),
        *_channels(survey, scalings),
        _labels(survey),
        Choice("data.root", str(root.resolve()), "A path of this machine; it is left out of the checkpoint."),
        *split.choices,
        *_preprocess(survey, grid, scalings),
        *_network(plan, grid),
        *_training(survey, plan, grid, budget, trained),
        *_prediction(survey, plan),
        *_card(survey, modality, name),
    ]
    return Proposal(_heading(survey), tuple(choices))


def _check(survey: Survey, modality: str) -> None:
    """Refuse a data set that a config could not say all of."""
    if not modality:
        raise ManifestInvalid(
            survey.manifest,
            seen="it does not tell the modality",
            expected="what DICOM calls it was expected (MR, CT, PT, ...)",
            remedy="Give it with --modality",
        )
    if survey.description.ignore is not None:
        raise ManifestInvalid(
            survey.manifest,
            seen="a value to ignore",
            expected="masks that say something of every voxel were expected",
            remedy="Leave the ignored voxels out: nothing here learns around them",
        )


def _heading(survey: Survey) -> str:
    return (
        f"Proposed by `imgpipe plan` from {len(survey.cases)} cases of"
        f" {len({case.patient for case in survey.cases})} patients. Every line may be changed; the comments say what"
        " each choice rests on. Sizes and spacings are R-L x A-P x S-I. The rules are those of nnU-Net (Isensee et"
        " al., Nature Methods 18:203, 2021) where no other reason stands."
    )


# --------------------------------------------------------------------------------------------------------- the sections


def _applies_to(survey: Survey, modality: str) -> Iterator[Choice]:
    extents = np.array([np.array(case.size) * case.spacing_mm for case in survey.cases])
    spacings = np.array([case.spacing_mm for case in survey.cases])
    low, high = extents.min(axis=0), extents.max(axis=0)
    others = [other for other in survey.description.modalities if other]
    yield Choice("applies_to.modality", list(dict.fromkeys([modality, *others])))
    yield Choice(
        "applies_to.description",
        None,
        "A pattern for SeriesDescription; without one every series of this size is taken.",
    )
    yield Choice(
        "applies_to.extent_min_mm",
        np.floor(low / _MARGIN).clip(1).tolist(),
        f"The cases are {_times(low)} to {_times(high)} mm large; a quarter less or more is still taken.",
    )
    yield Choice("applies_to.extent_max_mm", np.ceil(high * _MARGIN).tolist())
    yield Choice(
        "applies_to.spacing_max_mm",
        math.ceil(spacings.max() * _MARGIN * 100) / 100,
        f"The coarsest spacing seen is {spacings.max():.4g} mm.",
    )


def _labels(survey: Survey) -> Choice:
    labels, shares, taken = [], [], set()
    for id_, (told, values) in enumerate(survey.structures.items(), start=1):
        own = _slug(told, "label")
        own = own if own not in taken else f"{own}_{id_}"
        taken.add(own)
        title = printable(told)[:64] or own
        code = _snomed(title) or {"value": _ANATOMY["value"], "meaning": _ANATOMY["meaning"]}
        label = {"id": id_, "name": own, "title": title, "category": dict(_ANATOMY), "code": code}
        made_up = {"values": list(values)} if survey.description.regions else {}
        labels.append({**label, "colour": _colour(id_), **made_up})
        voxels = [(sum(case.voxels.get(value, 0) for value in values), case) for case in survey.cases]
        volumes = [count * case.voxel_volume / 1000 for count, case in voxels if count]
        shares.append(
            f"{title} in {len(volumes)} of {len(survey.cases)} cases, {min(volumes):.3g} to {max(volumes):.3g} mL"
        )
    why = (
        f"{'; '.join(shares)}. The codes go into reports: one that was found by the structure's name is to be checked,"
        " and 91723000 (any anatomical structure) to be replaced by the structure's own."
    )
    return Choice("labels", labels, why)


@dataclass(frozen=True, slots=True)
class _PlannedSplit:
    side: Split
    choices: tuple[Choice, ...]


def _split(survey: Survey) -> _PlannedSplit:
    """Folds and test part by the number of patients, with a word on structures that a part would lack."""
    patients = len({case.patient for case in survey.cases})
    if patients < 2:
        raise TooFewCases(
            survey.manifest,
            seen=f"{patients} patient",
            expected="at least two patients were expected",
            remedy="Add cases",
        )
    tested = _TEST_FRACTION if patients >= _WITH_TEST_PART else 0.0
    folds = max(2, min(_FOLDS, patients // 2))
    why_tested = (
        f"{patients} patients: {round(patients * tested)} of them take no part in training or choosing."
        if tested
        else f"{patients} patients are too few to set some apart; cross-validate with --fold 0 to {folds - 1} instead."
    )
    cases = [Case(case.name, (), Path(), case.patient) for case in survey.cases]
    splits = [split_by_patient(cases, test_fraction=tested, folds=folds, fold=fold, seed=0) for fold in range(folds)]
    lacking = list(_lacking(survey, splits, tested=tested > 0))
    return _PlannedSplit(
        splits[0],
        (
            Choice("data.seed", 0),
            Choice("data.test_fraction", tested, why_tested),
            Choice("data.folds", folds, " ".join(lacking)),
            Choice("data.fold", 0),
        ),
    )


def _lacking(survey: Survey, splits: list[Split], *, tested: bool) -> Iterator[str]:
    having = {
        name: {case.name for case in survey.cases if set(values) & set(case.voxels)}
        for name, values in survey.structures.items()
    }
    for label, names in having.items():
        for fold, split in enumerate(splits):
            sides = [side for side in ("train", "validation") if not names & set(getattr(split, side))]
            if sides:
                yield f"WARNING: with fold {fold} there is no case of {label} to {' and '.join(sides)}."
        if tested and not names & set(splits[0].test):
            yield f"WARNING: no test case has {label}."


def _preprocess(survey: Survey, grid: Grid, scalings: Sequence[Scaling]) -> Iterator[Choice]:
    turned = sorted({case.orientation for case in survey.cases})
    spacings = np.array([case.spacing_mm for case in survey.cases])
    low, high = spacings.min(axis=0), spacings.max(axis=0)
    yield Choice("preprocess.orientation", "RAS", f"The files' axes run {', '.join(turned)}; all are turned to this.")
    coarse = (
        ""
        if grid.coarse_axis is None
        else f" Along {_AXES[grid.coarse_axis]} the slices are more than three times as far apart as the pixels; the"
        " 10th percentile is taken there, so that the finer cases keep their slices."
    )
    yield Choice(
        "preprocess.spacing_mm",
        list(grid.spacing_mm),
        f"Seen: {_times(low)} to {_times(high)} mm; the median along each axis.{coarse} The median case is"
        f" then {_times(np.array(grid.median_size))} voxels.",
    )
    if len(scalings) == 1:
        why = scalings[0].why
        for key, value in scalings[0].settings.items():
            yield Choice(f"preprocess.{key}", value, why)
            why = ""


def _channels(survey: Survey, scalings: Sequence[Scaling]) -> Iterator[Choice]:
    """The images of a case, where there are several."""
    if len(scalings) == 1:
        return
    told = survey.description.channels
    named = [told[c] if len(told) == len(scalings) else f"channel {c + 1}" for c in range(len(scalings))]
    slugs = [_slug(name, "channel") for name in named]
    names = [slug if slugs.count(slug) == 1 else f"{slug}_{c}" for c, slug in enumerate(slugs, start=1)]
    why = " ".join(f"{name}: {scaling.why}" for name, scaling in zip(names, scalings, strict=True))
    yield Choice(
        "channels",
        [{"name": name, **scaling.settings} for name, scaling in zip(names, scalings, strict=True)],
        f"The images of a case, in the order of the manifest. {why}",
    )


def _network(plan: NetworkPlan, grid: Grid) -> Iterator[Choice]:
    topology = plan.topology
    apart = (
        ""
        if grid.coarse_axis is None
        else f" Along {_AXES[grid.coarse_axis]}, the coarse axis, pooling and kernels"
        " begin where the other axes have become as coarse."
    )
    stages = ", ".join("x".join(map(str, size)) for size in topology.sizes)
    yield Choice("network.name", "DynUNet", "MONAI's network of nnU-Net.")
    options = "network.options"
    yield Choice(f"{options}.filters", list(topology.filters), "Doubled at each stage, at most 320.")
    yield Choice(f"{options}.kernel_size", [list(kernel) for kernel in topology.kernels])
    yield Choice(
        f"{options}.strides",
        [list(stride) for stride in topology.strides],
        f"Pooled until four voxels are left: {stages}.{apart}",
    )
    yield Choice(f"{options}.upsample_kernel_size", [list(stride) for stride in topology.strides[1:]])
    yield Choice(f"{options}.norm_name", ["instance", {"affine": True}], "Batches are too small for batch statistics.")
    yield Choice(f"{options}.deep_supervision", True)
    yield Choice(f"{options}.deep_supr_num", topology.supervised, "All stages but the two deepest.")


def _training(survey: Survey, plan: NetworkPlan, grid: Grid, budget: Budget, trained: int) -> Iterator[Choice]:
    patch, batch = plan.topology.patch, plan.batch_size
    shown = [100 * min(1.0, edge / size) for edge, size in zip(patch, grid.median_size, strict=True)]
    epochs = epochs_for(budget, cases=trained, batch=batch)
    steps = max(1, trained // batch)
    share = np.median([sum(c.voxels.values()) / math.prod(c.size) for c in survey.cases])
    yield Choice("train.seed", 0)
    yield Choice(
        "train.patch",
        list(patch),
        f"As much of the median case as fits: {', '.join(f'{s:.0f} %' for s in shown)} of its edges.",
    )
    yield Choice(
        "train.foreground",
        _FOREGROUND,
        f"A third of the patches is centred on a structure, as in nnU-Net: the structures fill {100 * share:.2g} % of a"
        " case (median).",
    )
    yield Choice(
        "train.batch_size",
        batch,
        f"A step takes about {plan.step_bytes / 2**30:.2g} GiB of the {budget.memory_gib:g} GiB allowed, counted"
        " in 32 bits; a batch is at most 5 % of the data set and a quarter of its training cases, at least 2.",
    )
    yield Choice(
        "train.epochs",
        epochs,
        f"{trained} training cases make {steps} steps an epoch; {epochs} epochs are the {budget.steps} steps"
        f" asked for, each about {plan.step_operations / 1e12:.2g} Tflop. nnU-Net takes 250,000; more than the"
        " data set can teach is seen in a validation Dice that falls again.",
    )
    yield Choice("train.learning_rate", 0.001)
    yield Choice("train.weight_decay", 0.01)
    yield Choice("train.warmup_steps", 100)
    yield Choice("train.gradient_clip", 12)
    yield Choice("train.ema_decay", 0.995)
    yield Choice("train.precision", "bf16-mixed")
    yield Choice("train.validate_every", max(1, epochs // 20), "About twenty times in a run.")
    yield _augmentation(survey, grid)


def _augmentation(survey: Survey, grid: Grid) -> Choice:
    """nnU-Net's transforms, within the slices only where these are far apart, and no mirror where a side has a name."""
    turn, low, high = 0.52, -0.3, 0.4
    axes = [axis == grid.coarse_axis or grid.coarse_axis is None for axis in range(3)]
    scaled = [axis != grid.coarse_axis for axis in range(3)]
    affine = {
        "prob": 0.3,
        "rotate_range": [turn if free else 0.0 for free in axes],
        "scale_range": [[low, high] if free else [0.0, 0.0] for free in scaled],
    }
    why = "nnU-Net's, with rotations of at most 30 degrees"
    why += "" if grid.coarse_axis is None else ", within the slices only, since the slices are far apart"
    augment = [{"name": "RandAffine", "options": affine}]
    if _sided(survey):
        why += "; no mirroring, since the names tell left from right"
    else:
        why += "; mirrored left to right only, since no other mirror image is anatomy"
        augment.append({"name": "RandFlip", "options": {"prob": 0.5, "spatial_axis": 0}})
    blur = {f"sigma_{axis}": [0.5, 1.0] for axis in "xyz"}
    augment += [
        {"name": "RandGaussianNoise", "options": {"prob": 0.1, "std": 0.1}},
        {"name": "RandGaussianSmooth", "options": {"prob": 0.2, **blur}},
        {"name": "RandScaleIntensity", "options": {"prob": 0.15, "factors": 0.25}},
        {"name": "RandAdjustContrast", "options": {"prob": 0.3, "gamma": [0.7, 1.5]}},
        {"name": "RandSimulateLowResolution", "options": {"prob": 0.25, "zoom_range": [0.5, 1.0]}},
    ]
    return Choice("train.augment", augment, f"{why}.")


def _prediction(survey: Survey, plan: NetworkPlan) -> Iterator[Choice]:
    yield Choice("predict.patch", list(plan.topology.patch), "That of training.")
    yield Choice("predict.overlap", 0.5)
    yield Choice("predict.batch_size", 1)
    yield Choice("predict.precision", "bf16")
    yield Choice("predict.flip_axes", [] if _sided(survey) else [0], "The mirror images that training has seen.")


def _card(survey: Survey, modality: str, name: str) -> Iterator[Choice]:
    told = survey.description
    about = "; ".join(part for part in (printable(told.text), printable(told.reference)) if part)
    extents = np.array([np.array(case.size) * case.spacing_mm for case in survey.cases])
    cases = f"{len(survey.cases)} cases of {len({case.patient for case in survey.cases})} patients"
    yield Choice("card.data", f"{about + ': ' if about else ''}{cases}.", "What the model card says: complete it.")
    licence = printable(told.licence)
    yield Choice("card.licence", f"The data is {licence}." if licence else "Not stated by the data set.")
    yield Choice(
        "card.intended_use",
        f"Research: label {', '.join(map(printable, survey.structures))} in {modality} like that of the data set.",
    )
    yield Choice(
        "card.limits",
        f"It has seen {modality} of {_times(extents.min(axis=0))} to"
        f" {_times(extents.max(axis=0))} mm from this data set, and nothing else.",
    )
    yield Choice("card.command", f"imgpipe train {name} data.root=DATASET")


# ---------------------------------------------------------------------------------------------------------------- words


def _sided(survey: Survey) -> bool:
    """Whether a structure's name says left or right, so that a mirror image would be labelled wrongly.

    A word that merely holds one of these (cleft) costs an augmentation; one that is missed (LeftKidney) the truth.
    """
    words = [
        word.lower()
        for name in survey.structures
        for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)  # left_kidney, LeftKidney, KidneyL, LKidney
    ]
    return any("left" in word or "right" in word or word in _SIDES for word in words)


def _slug(name: str, otherwise: str) -> str:
    """As labels and configs are named: lower case, digits and underscores, a letter first."""
    slug = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    return slug if re.match(r"[a-z]", slug) else f"{otherwise}_{slug}".rstrip("_")


def _snomed(title: str) -> dict[str, str] | None:
    """The code of DICOM's context group 7192 (anatomical structures to segment) that is called so, if there is one."""
    from pydicom.sr.codedict import codes

    keyword = "".join(word[:1].upper() + word[1:] for word in re.findall(r"[A-Za-z0-9]+", title))
    if not keyword or keyword not in codes.cid7192.dir(keyword):
        return None
    code = getattr(codes.cid7192, keyword)
    return {"value": code.value, "meaning": code.meaning[:64]} if code.scheme_designator == "SCT" else None


def _colour(id_: int) -> str:
    if id_ <= len(_COLOURS):
        return _COLOURS[id_ - 1]
    # The golden ratio keeps neighbours on the colour wheel apart, however many there are.
    red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(id_ * 0.618034 % 1, 0.65, 0.9))
    return f"#{red:02x}{green:02x}{blue:02x}"


def _times(values: np.ndarray[Any, Any]) -> str:
    return " x ".join(f"{value:.4g}" for value in values.tolist())
