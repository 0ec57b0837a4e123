"""A SIMULATION: pictures paired with the reports of other patients of the same label, and of the opposite one.

    python benchmarks/bench_fusion.py REPORTS.csv --cases MANIFEST [--checkpoint chest_xray] [--target pneumonia]
        [--text CHECKPOINT] [--seed 0]

Nobody's picture is here with his own words. Each held-out picture of a checkpoint is given the words of somebody with
the same label, normal or abnormal (Open-i: `Problems` is "normal" or not), so that picture and words are independent
witnesses given the label, which they are not in a hospital: what fusing gains here is more than it will gain there. And
`pneumonia` of a child is not what the words of an adult call abnormal.

Printed: the AUC of picture alone, words alone and both, by `imgpipe train` with ``task: fuse``, for words written
before the picture was read (the indication), for a report's findings with and without its impression; and how well
`imaging.report.disagreement.score_of` tells pictures with the words of the opposite label from those of the same, with
the rate of false flags where 90 % are detected; with ``--text``, of the flags that a report really gets
(`imaging.report.disagreement.disagreements`, by assessments and mentions), how many of either kind of pairs are
flagged. A report beside its picture is circular: those lines say how well the
words are read, not how much they help.

No leak: only cases that did not train the picture's checkpoint are taken, as its metrics name them (those that
calibrated it are among them; the lines say how many); words are split by what they say before anything is fitted;
cases are split by patient and words for the fusion. ``--text`` names a text checkpoint that takes reports; only those
are read that it was not fitted on. Without it, and for requests, the words are read by a stand-in, TF-IDF and
logistic regression of scikit-learn, fitted on half of the texts that then take no further part. Intervals are over
patients.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import random
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imaging.calibrate import temperature_of
from imaging.cases import ClassifiedCase, load_picture, read_cases
from imaging.checkpoint import TextCheckpoint, find_checkpoint, open_checkpoint, open_text
from imaging.classifier import Classifier
from imaging.logistic import log_odds, logistic
from imaging.report.disagreement import Words, disagreements, score_of
from imaging.report.findings import findings_of
from imaging.report.report import Finding
from imaging.scores import auc, bootstrap_scores, share_with_interval
from pipelines.fusing import train_fusion

# What is read of a report, by what it is called here: its columns.
WORDS = {
    "request (indication)": ("indication",),
    "report, findings and impression": ("findings", "impression"),
    "report, impression removed": ("findings",),
}
DETECTED = 0.9
_CODE = {"value": "263654008", "meaning": "Abnormal"}


@dataclass(frozen=True)
class Text:
    """Somebody's words, by the number of his report, and whether they are abnormal."""

    uid: str
    words: str
    abnormal: bool

    @property
    def key(self) -> str:
        """The same for texts that say the same."""
        return " ".join(self.words.casefold().split())


@dataclass(frozen=True)
class Picture:
    """A case of the checkpoint with what that says of it."""

    name: str
    patient: str
    abnormal: bool
    logit: float
    findings: tuple[Finding, ...] = ()


Read = Callable[[Sequence[Text]], NDArray[np.float64]]


def texts_of(path: Path, columns: Sequence[str]) -> list[Text]:
    """The texts of Open-i that say something in some columns, each wording once, and none that has both labels."""
    with path.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    found = [
        Text(row["uid"], " ".join(row[name].strip() for name in columns).strip(), row["Problems"] != "normal")
        for row in rows
    ]
    labels: dict[str, set[bool]] = {}
    for text in found:
        labels.setdefault(text.key, set()).add(text.abnormal)
    once = {text.key: text for text in found if text.key and len(labels[text.key]) == 1}
    return [once[key] for key in sorted(once)]


def pictures_of(checkpoint: str, target: str, manifest: Path) -> tuple[list[Picture], str, dict[str, int]]:
    """The held-out cases, the hash of the weights, and how many come from which side of the checkpoint's training."""
    opened = open_checkpoint(find_checkpoint(checkpoint))
    classifier = Classifier(opened)
    sides = {side: set(opened.metrics[side]["each"]) for side in ("validation", "test")}
    held = [
        case for case in read_cases(manifest, opened.classifier()) if any(case.name in own for own in sides.values())
    ]
    counts = {side: sum(case.name in own for case in held) for side, own in sides.items()}
    return [_picture(classifier, case, target) for case in held], opened.weights_sha256, counts


def _picture(classifier: Classifier, case: ClassifiedCase, target: str) -> Picture:
    answer = classifier(load_picture(case))
    said = next(one for one in answer.judgements if one.target.name == target)
    logit = log_odds(min(max(said.probability, 1e-6), 1 - 1e-6))
    return Picture(case.name, case.patient, target in case.classes, logit, tuple(findings_of(answer)))


def by_tf_idf(texts: Sequence[Text]) -> Read:
    """The stand-in: fitted on some texts, its temperature found in five folds of them."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_predict
    from sklearn.pipeline import make_pipeline

    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True), LogisticRegression(C=10, max_iter=1000)
    )
    words, truth = [text.words for text in texts], np.array([text.abnormal for text in texts])
    held = cross_val_predict(model, words, truth, cv=5, method="decision_function")
    temperature = temperature_of(held[:, None], truth[:, None], softmax=False)
    model.fit(words, truth)
    return lambda asked: np.asarray(model.decision_function([text.words for text in asked]) / temperature)


def by_checkpoint(checkpoint: TextCheckpoint) -> Read:
    """A text checkpoint of imgpipe, asked about reports; NaN of one that is strange to it."""
    from imaging.text.document import Document
    from imaging.text.reading import TextReader

    reader = TextReader(checkpoint)
    said: dict[Text, float | None] = {}

    def read(texts: Sequence[Text]) -> NDArray[np.float64]:
        for text in set(texts) - set(said):
            said[text] = reader(Document.of(text.words, role="report", source="open-i")).logit
        return np.array([said[text] for text in texts], dtype=np.float64)

    return read


def flagged(
    checkpoint: TextCheckpoint, pictures: Sequence[Picture], words: Sequence[Text], whole: str
) -> NDArray[np.bool_]:
    """Which pairs a report flags, by the rules that serve."""
    from imaging.report.texts import spans_of
    from imaging.text.document import Document
    from imaging.text.reading import TextReader

    reader = TextReader(checkpoint)

    def one(picture: Picture, text: Text) -> bool:
        document = Document.of(text.words, role="report", source="open-i", language="en")
        said = reader(document)
        heard = Words(document, spans_of(document, said.spans), said.probability, said.assessment)
        named = {finding.model: whole for finding in picture.findings}
        return bool(disagreements(picture.findings, heard, whole=named))

    return np.array([one(*pair) for pair in zip(pictures, words, strict=True)])


def unseen(checkpoint: TextCheckpoint, texts: Sequence[Text]) -> list[Text]:
    """The texts that a text checkpoint was not fitted on: those that its metrics name, less those that trained it."""
    sides = ("validation", "cross_validation", "test")
    held = {uid for side in sides for uid in checkpoint.metrics.get(side, {}).get("each", {})}
    trained = set(checkpoint.metrics["training"]["names"])
    return [text for text in texts if text.uid in held - trained]


def paired(
    pictures: Sequence[Picture], texts: Sequence[Text], generator: random.Random
) -> tuple[list[Picture], list[Text], list[Text]]:
    """Pictures with the words of somebody of the same label, and with those of somebody of the opposite one.

    No words are given to two pictures, so that as many are taken of each label as there are words for both.
    """
    pools = {label: [text for text in texts if text.abnormal == label] for label in (False, True)}
    most = min(map(len, pools.values()))
    chosen: list[Picture] = []
    same: list[Text] = []
    opposite: list[Text] = []
    for label, pool in pools.items():
        own = [picture for picture in pictures if picture.abnormal == label]
        taken = generator.sample(own, min(most, len(own)))
        chosen += taken
        same += generator.sample(pool, len(taken))
        opposite += generator.sample(pools[not label], len(taken))
    return chosen, same, opposite


def fused(
    pictures: Sequence[Picture], words: Sequence[Text], logits: NDArray[np.float64], *, name: str, target: str,
    checkpoint: str, text_sha256: str, role: str,
) -> dict[str, Any]:  # fmt: skip
    """The metrics of a fusion that `imgpipe train` makes of the pairs; cases with the same words stay together."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        with (folder / "cases.csv").open("w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["case", "patient", "label", f"logit_{name}", "logit_text", "text"])
            for number, (picture, text, logit) in enumerate(zip(pictures, words, logits.tolist(), strict=True)):
                (folder / f"{number}.txt").write_text(text.words)
                row = [picture.name, picture.patient, int(picture.abnormal), picture.logit, logit, f"{number}.txt"]
                writer.writerow(row)
        config = {
            "name": "simulation", "version": "1.0", "title": "Simulation", "task": "fuse",
            "judged": {"name": "abnormal", "title": "Abnormal", "category": _CODE, "code": _CODE},
            "images": [{"name": name, "target": target, "checkpoint": str(find_checkpoint(checkpoint).resolve())}],
            "text": {"name": "words", "role": role, "weights_sha256": text_sha256},
            "card": dict.fromkeys(("data", "licence", "intended_use", "limits", "command"), "A simulation."),
        }  # fmt: skip
        (folder / "fusion.yaml").write_text(json.dumps(config))
        run = train_fusion(
            config=folder / "fusion.yaml", overrides=[f"data.root={folder / 'cases.csv'}", "data.test_fraction=0.5"],
            out=folder / "run",
        )  # fmt: skip
        return run.checkpoint.metrics


def disagreement(
    pictures: Sequence[Picture], same: NDArray[np.float64], opposite: NDArray[np.float64]
) -> dict[str, str]:
    """How well pairs of opposite labels are told from pairs of the same; each picture is in both."""
    by_picture = logistic(np.array([picture.logit for picture in pictures]))
    score = np.concatenate([[score_of(p, q) for p, q in zip(by_picture, logistic(words), strict=True)]
                            for words in (same, opposite)])  # fmt: skip
    truth = np.repeat([False, True], len(pictures))
    owners = [picture.patient for picture in pictures] * 2

    def measure(drawn: NDArray[np.int64]) -> dict[str, float]:
        contradicting, agreeing = score[drawn][truth[drawn]], score[drawn][~truth[drawn]]
        least = np.quantile(contradicting, 1 - DETECTED)
        return {"auc": auc(truth[drawn], score[drawn]), "false": float((agreeing >= least).mean())}

    return {name: str(figure) for name, figure in bootstrap_scores(measure, owners, trials={}).items()}


def main(arguments: argparse.Namespace) -> None:
    """Print a table for each kind of words."""
    print(__doc__.splitlines()[0])
    pictures, _, counts = pictures_of(arguments.checkpoint, arguments.target, arguments.cases)
    name = open_checkpoint(find_checkpoint(arguments.checkpoint)).name
    abnormal = sum(picture.abnormal for picture in pictures)
    told = ", ".join(f"{count} from its {side} part" for side, count in counts.items())
    print(f"{name}, {arguments.target}: {len(pictures)} pictures, {abnormal} abnormal, that did not train it"
          f" ({told})")  # fmt: skip
    for kind, columns in WORDS.items():
        role = "request" if kind.startswith("request") else "report"
        generator = random.Random(arguments.seed)
        texts = texts_of(arguments.reports, columns)
        generator.shuffle(texts)
        half = len(texts) // 2
        reader = open_text(find_checkpoint(arguments.text)) if arguments.text and role == "report" else None
        read = by_checkpoint(reader) if reader else by_tf_idf(texts[:half])
        asked = unseen(reader, texts) if reader else texts[half:]
        usual = [text for text, logit in zip(asked, read(asked), strict=True) if np.isfinite(logit)]
        asked, strange = usual, len(asked) - len(usual)
        sha256 = reader.weights_sha256 if reader else hashlib.sha256(kind.encode()).hexdigest()
        chosen, same, opposite = paired(pictures, asked, generator)
        by_words, against = read(same), read(opposite)
        metrics = fused(chosen, same, by_words, name=name, target=arguments.target, checkpoint=arguments.checkpoint,
                        text_sha256=sha256, role=role)  # fmt: skip
        test = metrics["test"]
        print(f"\n{kind}: {len(asked)} texts, read by {reader.name if reader else 'TF-IDF (stand-in)'}"
              f"; {strange} more are strange to it")  # fmt: skip
        print(f"  pairs: {metrics['training']['cases']} fit, {metrics['validation']['cases']} calibrate,"
              f" {test['cases']} test")  # fmt: skip
        for pattern, called in ((name, "picture alone"), ("text", "words alone"), (f"{name}+text", "fused")):
            print(f"  AUC, {called:14} {_shown(test['patterns'][pattern]['scores']['auc'])}")
        print(f"  gain over picture    {_shown(test['gain'])}")
        found = disagreement(chosen, by_words, against)
        print(f"  disagreement: AUC {found['auc']}; false flags at {DETECTED:.0%} detection {found['false']}")
        if reader:
            owners = [picture.patient for picture in chosen]
            for called, words in (("opposite", opposite), ("same", same)):
                share = share_with_interval(flagged(reader, chosen, words, arguments.target), owners)
                print(f"  flagged as a report is, words of the {called} label: {share}")


def _shown(figure: dict[str, float | None]) -> str:
    bounds = f" [{figure['low']:.3f}, {figure['high']:.3f}]" if figure["low"] is not None else ""
    return f"{figure['mean']:.3f}{bounds}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reports", type=Path)
    parser.add_argument("--cases", type=Path, required=True)
    parser.add_argument("--checkpoint", default="chest_xray")
    parser.add_argument("--target", default="pneumonia")
    parser.add_argument("--text", default="")
    parser.add_argument("--seed", type=int, default=0)
    sys.exit(main(parser.parse_args()))
