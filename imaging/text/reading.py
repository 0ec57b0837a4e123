"""One Document in, one TextReading out: whether it is normal, how probable that is, and what it mentions.

Invariant: what the model is asked is what its config names, in its own sections and windows; a probability is
calibrated and judged by what the checkpoint's metrics say of its validation cases, and without them nothing is judged.
Of a text that is strange to the checkpoint no number is told. No words of a text leave this room but by the reading
itself.

Shapes: N texts, K classes, H numbers a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from imaging.calibrate import calibrated_probability
from imaging.checkpoint import TextCheckpoint, read_arrays
from imaging.config import Encoder
from imaging.errors import CheckpointCorrupt
from imaging.judgement import Judgement, Target, judge, targets_of
from imaging.novelty import FILE, Familiar, Traits
from imaging.text.answer import TextReading, check_text, text_for
from imaging.text.assertion import judged, sentences
from imaging.text.data import IDS, MASK, OWNER, batch_of
from imaging.text.document import Document, Span
from imaging.text.encoder import Encoded, Tokens
from imaging.text.familiar import COUNTS, Vocabulary, traits_of
from imaging.text.network import Said, TextNetwork, load_trained
from imaging.text.spans import tags_said
from imaging.text.words import Mention, mentions_of


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """What the networks say of N texts before any calibration, and whether these are strange to them.

    Attributes
    ----------
    logits_NK
        The mean over members.
    novelty
        For each as in `TextReading`.
    """

    logits_NK: NDArray[np.float64]
    novelty: tuple[tuple[str, ...] | None, ...]


@dataclass(frozen=True, slots=True)
class Marked:
    """A mention with the mean probability of its words' tags."""

    mention: Mention
    score: float


class TextModel:
    """A text checkpoint with its networks in memory.

    Parameters
    ----------
    checkpoint
        A verified checkpoint.
    device
        ``cuda`` where there is one, else ``cpu``.
    encoder
        Where the encoder lies; by default as the checkpoint's config says.

    Raises
    ------
    MissingPackage, EncoderUnusable
        If the encoder that it stands on is not there.
    CheckpointCorrupt
        If the weights do not fit the config.
    """

    def __init__(
        self, checkpoint: TextCheckpoint, *, device: str | None = None, encoder: Encoder | None = None
    ) -> None:
        given = {"encoder": encoder or checkpoint.config.encoder}
        self.checkpoint, self.config = checkpoint, checkpoint.config.model_copy(update=given)
        self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._tokens = Tokens(self.config.encoder)
        self._networks = tuple(self._network(weights) for weights in checkpoint.load_members())
        kept = checkpoint.sums.get(FILE)
        arrays = read_arrays(checkpoint.folder / FILE, kept) if kept else {}
        self._familiar = Familiar.of_arrays(arrays) if kept else None
        self._vocabulary = Vocabulary(arrays[COUNTS]) if kept else None

    def _network(self, weights: dict[str, torch.Tensor]) -> TextNetwork:
        network = TextNetwork(self.config)
        try:
            load_trained(network, weights)
        except (KeyError, ValueError) as error:
            folder = self.checkpoint.folder
            raise CheckpointCorrupt(folder, seen=f"the weights do not fit the network: {error}") from error
        return network.eval().to(self._device)

    def logits(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """What the networks say each text is before any calibration: (N, K), the mean over members."""
        return self.ask(texts).logits_NK

    def ask(self, texts: Sequence[str]) -> Answers:
        """The same with what is strange about each text."""
        encoded = [self._tokens(text) for text in texts]
        logits_NK, embedding_NH = self._read(encoded)
        if self._familiar is None or self._vocabulary is None:
            return Answers(logits_NK, (None,) * len(texts))
        traits = traits_of(encoded, embedding_NH, self._vocabulary)
        return Answers(logits_NK, tuple(self._familiar.reasons(one, of="texts") for one in traits))

    def vocabulary(self, texts: Sequence[str]) -> Vocabulary:
        """How often each token occurs in some texts."""
        return Vocabulary.of([self._tokens(text) for text in texts])

    def traits(self, texts: Sequence[str], vocabulary: Vocabulary, *, own: bool) -> list[Traits]:
        """What some texts are like; see `imaging.text.familiar.traits_of`."""
        encoded = [self._tokens(text) for text in texts]
        return traits_of(encoded, self._read(encoded)[1], vocabulary, own=own)

    def _read(self, encoded: Sequence[Encoded]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The logits (N, K), and the mean of each text's tokens in the first network (N, H)."""
        logits_NK = np.zeros((len(encoded), len(self.config.classes)))
        embedding: dict[int, NDArray[np.float64]] = {}
        for some in self._batches(encoded):
            answers = self._ask([encoded[at] for at in some])
            said = [answer.classes_BK for answer in answers if answer.classes_BK is not None]
            logits_NK[some] = torch.stack(said).mean(0).double().cpu().numpy()
            embedding |= zip(some, answers[0].mean_BH.double().cpu().numpy(), strict=True)
        return logits_NK, np.array([embedding[at] for at in range(len(encoded))])

    def mark(self, texts: Sequence[str]) -> list[tuple[Marked, ...]]:
        """What each text mentions, and how sure that is; meant for sentences."""
        encoded = [self._tokens(text) for text in texts]
        found: dict[int, tuple[Marked, ...]] = {}
        for some in self._batches(encoded):
            asked = [encoded[at] for at in some]
            said = [answer.tags_WLT for answer in self._ask(asked)]
            tags_WLT = torch.stack([logits for logits in said if logits is not None]).mean(0).double().cpu().numpy()
            begins = 0
            for at, text in zip(some, asked, strict=True):
                tags, probability_W = tags_said(tags_WLT[begins : begins + len(text.windows)], text)
                begins += len(text.windows)
                found[at] = tuple(
                    Marked(mention, float(probability_W[first:after].mean()))
                    for mention, first, after in mentions_of(text.words, tags)
                )
        return [found[at] for at in range(len(texts))]

    def _batches(self, encoded: Sequence[Encoded]) -> list[list[int]]:
        """The texts by their length, so many at a time."""
        order = sorted(range(len(encoded)), key=lambda at: sum(map(len, encoded[at].windows)))
        size = self.config.predict.batch_size
        return [order[at : at + size] for at in range(0, len(order), size)]

    @torch.inference_mode()
    def _ask(self, texts: Sequence[Encoded]) -> list[Said]:
        batch = {name: tensor.to(self._device) for name, tensor in batch_of(texts).items()}
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self.config.predict.precision == "bf16"):
            return [network(batch[IDS], batch[MASK], batch[OWNER], len(texts)) for network in self._networks]


class TextReader:
    """A text checkpoint; call it with a Document. See `TextModel` for its parameters and what it raises."""

    def __init__(self, checkpoint: TextCheckpoint, *, device: str | None = None) -> None:
        self._model = TextModel(checkpoint, device=device)
        self.checkpoint, self._config = checkpoint, checkpoint.config

    def __call__(self, document: Document) -> TextReading:
        """Read a text.

        Raises
        ------
        NotApplicable
            If it is of a role or in a language that the checkpoint does not take.
        """
        check_text(self._config, document)
        spans = self._spans(document) if self._config.kinds else ()
        targets = [target for target in targets_of(self._config) if target.abnormal] if self._config.classes else []
        if not targets:
            return TextReading(document, self.checkpoint, None, None, None, "", spans)
        answers = self._model.ask([text_for(self._config, document)])
        logit, found = self._judged(targets[0], answers)
        strange = found.strange
        return TextReading(
            document=document,
            checkpoint=self.checkpoint,
            logit=None if strange else logit,
            probability=None if strange else found.probability,
            assessment=found.assessment,
            reason=found.reason,
            spans=spans,
            novelty=answers.novelty[0],
        )

    def _judged(self, target: Target, answers: Answers) -> tuple[float, Judgement]:
        """The calibrated log-odds of the one text that was asked about, and what follows."""
        calibration = self.checkpoint.metrics.get("calibration") or {}
        logits_1K = answers.logits_NK
        probability_1K = calibrated_probability(logits_1K, calibration, softmax=True)
        scaled_K = logits_1K[0] / calibration.get("temperature", 1.0)
        if calibration.get("isotonic"):  # its probabilities end before 0 and 1, so that their logarithms are finite
            scaled_K = np.log(probability_1K[0])
        inside = np.isin(np.arange(len(scaled_K)), target.classes)
        logit = float(np.logaddexp.reduce(scaled_K[inside]) - np.logaddexp.reduce(scaled_K[~inside]))
        strange = "; ".join(answers.novelty[0] or ())
        return logit, judge(
            target, float(target.probability(probability_1K)[0]), calibration, strange=strange, of="text"
        )

    def _spans(self, document: Document) -> tuple[Span, ...]:
        """What the sentences mention, where that is sure enough, and whether the text says that it is there."""
        places = sentences(document)
        marked = self._model.mark([document.text[start:end] for start, end in places])
        found = [
            (start + one.mention.start, start + one.mention.end, one)
            for (start, _), of_sentence in zip(places, marked, strict=True)
            for one in of_sentence
            if one.score >= self._config.predict.least_score
        ]
        said = judged(document, [(start, end) for start, end, _ in found])
        return tuple(
            Span(start, end, self._config.kinds[one.mention.kind].name, judgement.assertion, one.score, None,
                 judgement.sentence)
            for (start, end, one), judgement in zip(found, said, strict=True)
        )  # fmt: skip
