"""How well texts are told normal from abnormal, beside TF-IDF with logistic regression on the same folds.

    python benchmarks/bench_text.py REPORTS.csv RUNS [--folds 5] [--only-done]

REPORTS.csv is that of Open-i (Indiana University). The folds keep nearly equal texts on one side, as `imgpipe train`
deals them. Trains what is not yet in RUNS (`report_text/fold_<k>`, `request_text/fold_<k>`); with --only-done it
measures the folds that are there and trains none. Both are given the same texts of the same folds: findings and
impression; the findings alone, to models that were trained with both (the impression taken away); the indication alone.

Goal: on findings and impression an AUC and an accuracy above those of TF-IDF. scikit-learn is for this file only.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline

from imaging.checkpoint import open_text
from imaging.config import TextConfig, find_config
from imaging.scores import auc
from imaging.text.cases import TextCase, read_texts
from imaging.text.reading import TextModel
from pipelines.sides import Listed, Texts, deal
from pipelines.train import resolve, train


@dataclass
class Told:
    """What was said of the held-out texts of each fold: truth and probability of being abnormal."""

    folds: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)

    def row(self) -> str:
        """Mean and standard deviation over the folds of AUC and accuracy (at a probability of one half)."""
        aucs = [auc(truth, probability) for truth, probability in self.folds]
        right = [((probability >= 0.5) == truth).mean() for truth, probability in self.folds]
        return " | ".join(_spread(values) for values in (aucs, right))


def _spread(values: Sequence[float]) -> str:
    spread = f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else ""
    return f"{np.mean(values):.4f}{spread}"


def tfidf() -> Pipeline:
    """Words and pairs of words, as a baseline usually has them."""
    words = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    return make_pipeline(words, LogisticRegression(C=10, max_iter=2000))


def abnormal(model: TextModel, texts: Sequence[str]) -> np.ndarray:
    """The probability that the model gives, calibrated by nothing: the middle stays where it is."""
    logits = model.logits(texts)
    return np.asarray(1 / (1 + np.exp(logits[:, 0] - logits[:, 1])))


def dealt(name: str, reports: Path, folds: int, fold: int) -> tuple[TextConfig, Texts]:
    """The cases of one fold, as the training deals them."""
    overrides = [f"data.root={reports}", f"data.folds={folds}", f"data.fold={fold}", "data.test_fraction=0"]
    config = resolve(find_config(name), overrides, precision=None)
    assert isinstance(config, TextConfig)
    cases = deal(config, Listed(read_texts(reports, config)[0]))
    assert isinstance(cases, Texts)
    return config, cases


def without_impression(cases: Sequence[TextCase], reports: Path, config: TextConfig) -> dict[str, str]:
    """The findings alone of those that have any, by the case's name."""
    columns = config.data.columns.model_copy(update={"parts": ("findings",)})
    alone = config.model_copy(update={"data": config.data.model_copy(update={"columns": columns})})
    known = {case.name: case.text for case in read_texts(reports, alone)[0]}
    return {case.name: known[case.name] for case in cases if case.name in known}


def measure(name: str, reports: Path, runs: Path, *, folds: int, only_done: bool) -> dict[str, dict[str, Told]]:
    """What both say of every fold."""
    found: dict[str, dict[str, Told]] = {}
    for fold in range(folds):
        place = runs / name / f"fold_{fold}"
        config, cases = dealt(name, reports, folds, fold)
        if not (place / "checkpoint").is_dir():
            if only_done:
                continue
            begun = (place / "state" / "last.ckpt").is_file()
            overrides = [f"data.root={reports}", f"data.folds={folds}", "data.test_fraction=0"]
            train(config=find_config(name), overrides=overrides, fold=fold, resume=begun, out=place, progress=False)
        model, peer = TextModel(open_text(place / "checkpoint")), tfidf()
        taught, held = cases.sides["train"], cases.sides["validation"]
        peer.fit([case.text for case in taught], ["abnormal" in case.classes for case in taught])
        asked = {", ".join(config.data.columns.parts): {case.name: case.text for case in held}}
        if "impression" in config.data.columns.parts:
            asked["findings, the impression taken away"] = without_impression(held, reports, config)
        for what, texts in asked.items():
            truth = np.array(["abnormal" in case.classes for case in held if case.name in texts])
            both = found.setdefault(what, {"imgpipe": Told(), "TF-IDF": Told()})
            both["imgpipe"].folds.append((truth, abnormal(model, list(texts.values()))))
            both["TF-IDF"].folds.append((truth, peer.predict_proba(list(texts.values()))[:, 1]))
    return found


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("reports", type=Path)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--only-done", action="store_true")
    given = parser.parse_args()
    print("| texts | folds | held out | who | AUC | accuracy |\n| --- | --- | --- | --- | --- | --- |")
    for name in ("report_text", "request_text"):
        found = measure(name, given.reports, given.runs, folds=given.folds, only_done=given.only_done)
        for what, both in found.items():
            for who, told in both.items():
                count = sum(len(truth) for truth, _ in told.folds)
                print(f"| {what} | {len(told.folds)} of {given.folds} | {count} | {who} | {told.row()} |", flush=True)


if __name__ == "__main__":
    main()
