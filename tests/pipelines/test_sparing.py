"""int8 leaves alone as few layers as it takes, chosen by what each costs in agreement for the time that it saves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from untrained import tiny_segmenter, toy_classifier

from imaging.checkpoint import Checkpoint
from imaging.engines import engines_of
from imaging.engines.choice import converted_models, tile_shape
from imaging.engines.quantized import multiplications_of, quantized
from pipelines import sparing
from pipelines.sparing import Difference, difference, mixed

TILES = [np.zeros((1, 1, 2, 2, 2), dtype=np.float32)] * 4
Run = Callable[[dict[str, tuple[float, int]]], tuple[tuple[str, ...], list[str]]]


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return tiny_segmenter(tmp_path_factory.mktemp("sparing") / "segmenter")


class Model(NamedTuple):
    """A network of which only is known which layers are not in int8; None where none is."""

    spared: frozenset[str] | None = None


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Choose layers by what each costs and how many multiplications it has; squares of what they cost add."""

    def choose(layers: dict[str, tuple[float, int]]) -> tuple[tuple[str, ...], list[str]]:
        def quantized(_: Any, __: Any, spared: Sequence[str]) -> Model:
            return Model(frozenset(spared))

        def difference(_: Any, __: Any, engine: Any, ___: Any) -> Difference:
            spared = engine.spared if engine.spared is not None else layers.keys()
            apart = sum((layers[name][0] ** 2 for name in layers.keys() - spared), start=0.01) ** 0.5
            return Difference(apart, apart)

        monkeypatch.setattr(sparing, "multiplications_of", lambda _: {name: each[1] for name, each in layers.items()})
        monkeypatch.setattr(sparing, "OpenVinoEngine", lambda model, **_: model)
        monkeypatch.setattr(sparing, "quantized", quantized)
        monkeypatch.setattr(sparing, "difference", difference)
        steps: list[str] = []
        nothing: Any = None
        model: Any = Model()
        return mixed(nothing, model, tiles=TILES, others=TILES, on_step=steps.append).spared, steps

    return choose


def test_harmless_network_is_in_int8_whole(run: Run) -> None:
    assert run({"first": (0.3, 1), "second": (0.3, 1)}) == ((), ["int8: quantization 1 of at most 5"])


def test_fewest_layers_are_spared_and_those_first_that_cost_much_and_save_little(run: Run) -> None:
    layers = {"wide": (0.9, 90), "small": (1.0, 1), "deep": (0.1, 5), "last": (0.85, 10)}
    spared, steps = run(layers)
    # By its cost alone `wide` would go first, and two would not be enough without it.
    assert spared == ("small", "last", "wide")
    assert len(steps) <= 1 + len(layers) + 3
    assert run({**layers, "wide": (0.5, 90)})[0] == ("small", "last")
    assert run({**layers, "wide": (0.1, 90), "last": (0.1, 10)})[0] == ("small",)


def test_where_only_sparing_all_would_do_none_is(run: Run) -> None:
    """Nothing would be left in int8: what is left to refuse is the whole."""
    assert run({"first": (2.0, 1), "second": (3.0, 1), "third": (4.0, 1)})[0] == ()


def test_spared_layer_stays_as_it_is(segmenter: Checkpoint) -> None:
    (model,) = converted_models(segmenter)
    layers = multiplications_of(model)
    first = next(iter(layers))
    # 4 filters of 3 x 3 x 3 over one channel, at each voxel of the tile.
    assert layers[first] == 4 * 27 * 40 * 56 * 40
    # 8 channels to 4 by 2 x 2 x 2, once for each voxel that comes in.
    assert layers[next(name for name in layers if name.endswith("ConvolutionBackpropData"))] == 8 * 8 * 8 * 10 * 14 * 10
    tiles = [np.random.default_rng(0).normal(size=tile_shape(segmenter)).astype(np.float32)]
    found = {spared: _in_int8(quantized(model, tiles, spared)) for spared in ((), (first,))}
    assert found[()] == layers.keys()
    assert found[(first,)] == layers.keys() - {first}


def _in_int8(model: Any) -> set[str]:
    """The layers whose weights come through a scale from whole numbers."""
    return {
        node.get_friendly_name()
        for node in model.get_ordered_ops()
        if "Convolution" in node.get_type_name()
        and node.input_value(1).get_node().get_type_name() not in ("Constant", "Convert")
    }


def test_difference_is_that_of_the_rule(segmenter: Checkpoint) -> None:
    reference = engines_of(segmenter, wanted="openvino", precision="fp32").members[0]
    tiles = [np.random.default_rng(seed).normal(size=tile_shape(segmenter)).astype(np.float32) for seed in range(3)]
    assert difference(segmenter, reference, reference, tiles) == (0.0, 0.0)

    class Moved:
        """One voxel of each tile that was of structure 1 is background."""

        name, precision, batch = "openvino", "int8", 2

        def __call__(self, asked: Any) -> Any:
            logits = reference(asked)
            for tile_KXYZ in logits:
                x, y, z = np.argwhere(tile_KXYZ.argmax(axis=0) == 1)[0]
                tile_KXYZ[:, x, y, z] = (30, 0, 0)
            return logits

    own: Any = Moved()
    counts = sum(int((reference(tile).argmax(axis=1) == 1).sum()) for tile in tiles)
    lost = 1 - 2 * (counts - 3) / (2 * counts - 3)
    found = difference(segmenter, reference, own, tiles)
    assert found.share == pytest.approx(lost / 0.002)
    assert found.mean > 0


def test_difference_of_a_classifier_is_of_its_probabilities(tmp_path: Path) -> None:
    """Calibrated, and not of the embedding behind them."""
    checkpoint = toy_classifier(tmp_path, metrics={"calibration": {"temperature": 2.0}})
    said: Any = lambda values: lambda asked: np.array([values] * len(asked), dtype=np.float32)  # noqa: E731
    first, second = said((0.0, 0.0, 5.0)), said((0.0, 0.1, 9.0))
    first.batch = second.batch = 1
    found = difference(checkpoint, first, second, [np.zeros((1, 1, 4, 4), dtype=np.float32)] * 2)
    expected = 1 / (1 + np.exp(-0.05)) - 0.5
    assert found == pytest.approx((expected, expected / 0.01))
