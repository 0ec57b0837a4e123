"""Engines answer alike; what is kept of them is used by every process, and remade where it is damaged."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from classified import toy_config

from imaging.checkpoint import Checkpoint, joined, open_checkpoint, save_checkpoint, with_extras
from imaging.config import SegmentConfig, load_config
from imaging.engines import Engines, engines_of, runtime
from imaging.engines.accepted import FILE, Compared, Trial, Trials, elsewhere, trials_of
from imaging.engines.choice import converted_models, tile_shape
from imaging.engines.kept import cache_folder, key_of
from imaging.engines.openvino_engine import OpenVinoEngine
from imaging.engines.quantized import as_files, files_of_all
from imaging.errors import CheckpointCorrupt, EngineRefused, MissingPackage, UnknownName
from imaging.files import shipped
from imaging.networks import build_classifier, build_segmenter, weights_of

TINY = (
    "network.options.filters=[4, 8, 8]",
    "network.options.kernel_size=[3, 3, 3]",
    "network.options.strides=[1, 2, 2]",
    "network.options.upsample_kernel_size=[2, 2]",
    "predict.patch=[24, 16, 8]",
)
ROOT = Path(__file__).parents[3]


def trial(*, accepted: bool = True, precision: Any = "fp32", **others: Any) -> Trial:
    compared = Compared(dice_with_torch=0.9999 if accepted else 0.9, dice=0.9, dice_of_torch=0.9)
    here = {"version": runtime.version(), "instructions": runtime.instructions(precision), **others}
    return Trial(engine="openvino", precision=precision, processor="one", data="some", side="validation", cases=3,
                 compared={"part": compared}, **here)  # fmt: skip


def with_trials(checkpoint: Checkpoint, folder: Path, *trials: Trial) -> Checkpoint:
    content = Trials(trials=trials).model_dump_json().encode()
    return with_extras(folder, checkpoint, checkpoint.metrics, {FILE: content})


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """An ensemble of two of random weights that no engine was compared for."""
    config = load_config(shipped("configs") / "hippocampus_mr.yaml", TINY)
    assert isinstance(config, SegmentConfig)
    members = []
    for seed in range(2):
        torch.manual_seed(seed)
        members.append(weights_of(build_segmenter(config)))
    folder = tmp_path_factory.mktemp("engines") / "bare"
    return save_checkpoint(folder, config.model_copy(update={"members": 2}), joined(members), {})


@pytest.fixture(scope="module")
def accepted(bare: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return with_trials(bare, tmp_path_factory.mktemp("engines") / "accepted", trial())


@pytest.fixture(scope="module")
def tiles() -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).normal(size=(3, 1, 24, 16, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def by_torch(bare: Checkpoint, tiles: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
    found = engines_of(bare, wanted="torch", device="cpu", precision="fp32")
    assert (found.choice.name, found.choice.precision) == ("torch", "fp32")
    return [engine(tiles) for engine in found.members]


def in_a_process(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120,
                          cwd=ROOT, env=os.environ | environment)  # fmt: skip


def test_openvino_says_what_torch_says_of_each_member(
    accepted: Checkpoint, tiles: np.ndarray[Any, Any], by_torch: list[np.ndarray[Any, Any]]
) -> None:
    found = engines_of(accepted, wanted="openvino")
    assert found.choice.name == "openvino"
    assert found.choice.precision == "fp32"
    assert "bf16" in found.choice.why
    for engine, expected in zip(found.members, by_torch, strict=True):
        assert expected.shape == (3, 3, 24, 16, 8)
        assert expected.std() > 0.1
        said = engine(tiles)
        assert said.dtype == np.float32
        assert np.abs(said - expected).max() < 1e-3 * np.abs(expected).max()
        assert np.array_equal(engine(tiles[1:2])[0], said[1])
    assert not np.allclose(by_torch[0], by_torch[1])


def test_answer_that_is_let_go_takes_no_memory() -> None:
    openvino = runtime.runtime()
    tile, weights = openvino.opset13.parameter([1, 1, 8, 8, 8], np.float32), np.ones((4, 1, 1, 1, 1), np.float32)
    widened = openvino.opset13.convolution(tile, weights, [1] * 3, [0] * 3, [0] * 3, [1] * 3)
    engine = OpenVinoEngine(openvino.Model([widened], [tile]), precision="fp32")
    for count in (1, engine.batch, 2 * engine.batch + 1):
        tiles = np.arange(1, count + 1, dtype=np.float32)[:, None, None, None, None] * np.ones((1, 8, 8, 8))
        answer = engine(tiles.astype(np.float32))
        np.testing.assert_array_equal(answer, np.repeat(tiles, 4, axis=1))
        held = weakref.ref(answer)
        del answer
        assert held() is None


def test_call_that_failed_leaves_the_engine_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    openvino = runtime.runtime()
    tile = openvino.opset13.parameter([1, 1, 4, 4, 4], np.float32)
    engine = OpenVinoEngine(openvino.Model([openvino.opset13.relu(tile)], [tile]), precision="fp32")

    class Failing:
        """A request that failed, and says so whenever it is waited for until it is begun again."""

        def __init__(self, request: Any) -> None:
            self.request, self.failed = request, True

        def start_async(self, *inputs: Any, **options: Any) -> None:
            if not self.failed:
                self.request.start_async(*inputs, **options)

        def wait(self) -> None:
            if self.failed:
                raise RuntimeError("out of memory")
            self.request.wait()

        def set_output_tensor(self, tensor: Any) -> None:
            self.request.set_output_tensor(tensor)

    failing = Failing(engine._requests[0])
    monkeypatch.setattr(engine, "_requests", [failing, *engine._requests[1:]])
    asked = np.full((1, 1, 4, 4, 4), 2, dtype=np.float32)
    with pytest.raises(RuntimeError, match="out of memory"):
        engine(asked)
    start = failing.request.start_async
    monkeypatch.setattr(failing, "start_async", lambda *given, **options: (setattr(failing, "failed", False),
                                                                           start(*given, **options)))  # fmt: skip
    np.testing.assert_array_equal(engine(asked), asked)


def test_classifiers_embedding_comes_behind_its_logits(tmp_path: Path) -> None:
    config = toy_config(tmp_path)
    torch.manual_seed(0)
    network = build_classifier(config.network, spatial_dims=2, in_channels=1, classes=2)
    checkpoint = save_checkpoint(tmp_path / "checkpoint", config, weights_of(network), {})
    image = np.random.default_rng(0).normal(size=(2, 1, *config.preprocess.size)).astype(np.float32)
    said = [engines_of(checkpoint, wanted=wanted, precision="fp32").members[0](image)
            for wanted in ("torch", "openvino")]  # fmt: skip
    assert said[0].shape == said[1].shape
    assert said[0].shape[1] > 2
    assert np.abs(said[0] - said[1]).max() < 1e-3
    with torch.no_grad():
        assert said[0][:, :2] == pytest.approx(network.eval()(torch.from_numpy(image)).numpy(), abs=1e-4)


def test_kept_model_needs_neither_torch_nor_monai_and_tells_nobody(
    accepted: Checkpoint, tiles: np.ndarray[Any, Any], tmp_path: Path
) -> None:
    expected = engines_of(accepted).members[0](tiles)  # and is kept from here on
    np.save(tmp_path / "tiles.npy", tiles)
    code = f"""
import sys, numpy
from pathlib import Path
from imaging.checkpoint import open_checkpoint
from imaging.engines import engines_of
found = engines_of(open_checkpoint(Path({str(accepted.folder)!r})))
numpy.save({str(tmp_path / "said.npy")!r}, found.members[0](numpy.load({str(tmp_path / "tiles.npy")!r})))
print(found.choice.name, [name for name in ("torch", "monai") if name in sys.modules])
print(sys.modules["openvino_telemetry"])
"""
    result = in_a_process(code)
    assert result.stdout.splitlines() == ["openvino []", "None"], result.stderr
    assert np.array_equal(np.load(tmp_path / "said.npy"), expected)


def test_processor_without_avx512_computes_in_fp32_and_says_so(
    bare: Checkpoint, tiles: np.ndarray[Any, Any], by_torch: list[np.ndarray[Any, Any]], tmp_path: Path
) -> None:
    checkpoint = with_trials(bare, tmp_path / "both", trial(), trial(precision="bf16"))
    engines_of(checkpoint, wanted="openvino")
    np.save(tmp_path / "tiles.npy", tiles)
    code = f"""
import numpy
from pathlib import Path
from imaging.checkpoint import open_checkpoint
from imaging.engines import engines_of
found = engines_of(open_checkpoint(Path({str(checkpoint.folder)!r})))
numpy.save({str(tmp_path / "said.npy")!r}, found.members[0](numpy.load({str(tmp_path / "tiles.npy")!r})))
print(found.choice)
"""
    result = in_a_process(code, ONEDNN_MAX_CPU_ISA="AVX2")
    assert "name='openvino', precision='fp32'" in result.stdout, result.stderr
    assert "no bf16 (ONEDNN_MAX_CPU_ISA=AVX2)" in result.stdout
    assert np.abs(np.load(tmp_path / "said.npy") - by_torch[0]).max() < 1e-3 * np.abs(by_torch[0]).max()


def test_damaged_model_is_made_anew_and_told(
    accepted: Checkpoint, tiles: np.ndarray[Any, Any], caplog: pytest.LogCaptureFixture
) -> None:
    expected = engines_of(accepted).members[0](tiles)
    entries = [cache_folder() / key_of(accepted, member, tile_shape(accepted)) for member in range(2)]
    for path in (entries[0] / "model.xml", entries[1] / "model.bin"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        again = engines_of(accepted).members[0](tiles)
    assert caplog.text.count("damaged") == 2
    assert np.array_equal(again, expected)
    caplog.clear()
    engines_of(accepted)
    assert caplog.text == ""


@pytest.mark.parametrize("package", ["torch", "monai"])
def test_model_of_another_version_of_what_converts_it_is_stale_and_made_anew(
    accepted: Checkpoint, tiles: np.ndarray[Any, Any], monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    expected = engines_of(accepted).members[0](tiles)
    shape = tile_shape(accepted)
    before, plain = key_of(accepted, 0, shape), importlib.metadata.version
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.0" if name == package else plain(name))
    after = key_of(accepted, 0, shape)
    assert not (cache_folder() / after).exists()
    assert np.array_equal(engines_of(accepted).members[0](tiles), expected)
    assert (cache_folder() / after / "model.xml").is_file()
    assert (cache_folder() / before / "model.xml").is_file()


def test_processes_that_start_together_convert_once(tmp_path: Path) -> None:
    code = f"""
import time
from imaging.engines.kept import kept_model
from imaging.engines.openvino_engine import OpenVinoEngine
from imaging.engines.runtime import runtime
import numpy
def make():
    with open({str(tmp_path / "made")!r}, "a") as file:
        file.write("once ")
    time.sleep(0.5)
    opset = runtime().opset13
    given = opset.parameter([1, 1, 4, 4], numpy.float32)
    return runtime().Model([opset.add(given, opset.constant(numpy.float32(1)))], [given])
print(OpenVinoEngine(kept_model("ab" * 32, make), precision="fp32")(numpy.zeros((2, 1, 4, 4), numpy.float32)).sum())
"""
    processes = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT,
                         env=os.environ | {"IMGPIPE_CACHE": str(tmp_path)})
        for _ in range(2)
    ]  # fmt: skip
    assert [process.communicate(timeout=120)[0].split()[-1] for process in processes] == ["32.0"] * 2
    assert (tmp_path / "made").read_text() == "once "
    assert [path.name for path in (tmp_path / "engines").iterdir() if path.name != "locks"] == ["ab" * 32]


def test_where_nothing_can_be_kept_it_is_told_and_done_without(
    accepted: Checkpoint, tiles: np.ndarray[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("IMGPIPE_CACHE", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING):
        found = engines_of(accepted)
    assert found.choice.name == "openvino"
    assert "cannot be kept" in caplog.text
    assert found.members[0](tiles).shape == (3, 3, 24, 16, 8)


def test_torch_answers_where_nothing_was_compared(bare: Checkpoint) -> None:
    found = engines_of(bare)
    assert found.choice.name == "torch"
    assert "never compared" in found.choice.why
    with pytest.raises(EngineRefused, match="never compared"):
        engines_of(bare, wanted="openvino")


def test_torch_answers_where_the_answers_were_not_as_good(bare: Checkpoint, tmp_path: Path) -> None:
    checkpoint = with_trials(bare, tmp_path / "worse", trial(accepted=False), trial(accepted=False, precision="bf16"))
    found = engines_of(checkpoint)
    assert found.choice.name == "torch"
    assert "part: Dice 0.9 with torch's masks" in found.choice.why
    with pytest.raises(EngineRefused, match=r"0\.998"):
        engines_of(checkpoint, wanted="openvino")


def test_structure_that_no_case_had_is_told_with_the_engine(bare: Checkpoint, tmp_path: Path) -> None:
    known = trial()
    compared = {**known.compared, "other_part": Compared(seen=0)}
    checkpoint = with_trials(bare, tmp_path / "unseen", known.model_copy(update={"compared": compared}))
    found = engines_of(checkpoint).choice
    assert (found.name, found.precision) == ("openvino", "fp32")
    assert found.why.endswith("fp32 was accepted without a case of other_part")


def test_another_version_or_processor_than_was_measured_is_told(
    bare: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    year, minor, *_ = runtime.version().split(".")
    assert elsewhere(trial(version=f"{year}.{minor}.77")) == ""
    assert elsewhere(trial(instructions="")) == ""
    checkpoint = with_trials(bare, tmp_path / "older", trial(version="2020.3.1", instructions="sse"))
    found = engines_of(checkpoint).choice
    assert (found.name, found.precision) == ("openvino", "fp32")
    here = f"OpenVINO {year}.{minor} and {runtime.instructions('fp32') or 'others'}"
    assert found.why.endswith(f"fp32 was accepted with OpenVINO 2020.3 and sse, here it is {here}")


@pytest.fixture(scope="module")
def with_int8(bare: Checkpoint, tiles: np.ndarray[Any, Any], tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """It keeps models as int8 that are what torch says and one more, so that they can be told."""
    opset = runtime.runtime().opset13
    models = []
    for source in converted_models(bare):
        model = runtime.core().read_model(source)
        (result,) = model.get_results()
        more = opset.add(result.input_value(0), opset.constant(np.float32(1)))
        models.append(runtime.runtime().Model([more], model.get_parameters()))
    extras = {FILE: Trials(trials=(trial(), trial(precision="int8"))).model_dump_json().encode(), **as_files(models)}
    return with_extras(tmp_path_factory.mktemp("engines") / "int8", bare, bare.metrics, extras)


def test_int8_of_a_checkpoint_answers_where_the_processor_has_it(
    with_int8: Checkpoint, tiles: np.ndarray[Any, Any], by_torch: list[np.ndarray[Any, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(runtime, "has_int8", lambda: True)
    found = engines_of(with_int8)
    assert (found.choice.name, found.choice.precision, found.choice.why) == ("openvino", "int8", "")
    for engine, expected in zip(found.members, by_torch, strict=True):
        # What is in no integer, as all of it is here, may be in bf16.
        assert np.abs(engine(tiles) - expected - 1).max() < 0.05 * np.abs(expected).max()
    monkeypatch.setattr(runtime, "has_int8", lambda: False)
    found = engines_of(with_int8)
    assert (found.choice.name, found.choice.precision) == ("openvino", "fp32")
    assert "this processor has no int8" in found.choice.why
    assert np.abs(found.members[0](tiles) - by_torch[0]).max() < 1e-3 * np.abs(by_torch[0]).max()


@pytest.mark.parametrize(
    ("speeds", "first"),
    [({"int8": 2.0, "fp32": 1.5}, "int8"), ({"int8": 1.5, "fp32": 2.0}, "fp32"), ({"int8": 1.5, "fp32": None}, "int8")],
)  # fmt: skip
def test_fastest_accepted_one_answers_as_far_as_it_was_measured(
    with_int8: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, speeds: dict[Any, float | None], first: str
) -> None:
    monkeypatch.setattr(runtime, "has_int8", lambda: True)
    trials = Trials(trials=(*(trial(precision=one, speed=speed) for one, speed in speeds.items()),
                            trial(precision="bf16", accepted=False, speed=1.0)))  # fmt: skip
    extras = {**with_int8.further_files(), FILE: trials.model_dump_json().encode()}
    assert set(files_of_all(2)) <= extras.keys()
    checkpoint = with_extras(tmp_path / "measured", with_int8, with_int8.metrics, extras)
    assert engines_of(checkpoint).choice.precision == first


def test_torch_answers_where_openvino_is_missing(accepted: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    found = engines_of(accepted)
    assert (found.choice.name, found.choice.why) == ("torch", "openvino is not installed")
    with pytest.raises(MissingPackage, match="openvino is not installed"):
        engines_of(accepted, wanted="openvino")


def test_torch_computes_in_fp32_where_bf16_would_be_imitated(bare: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    assert bare.config.predict.precision == "bf16"
    monkeypatch.setattr("imaging.engines.torch_engine.has_bf16", lambda device: False)
    assert engines_of(bare, wanted="torch", device="cpu").choice.precision == "fp32"
    monkeypatch.setattr("imaging.engines.torch_engine.has_bf16", lambda device: True)
    assert engines_of(bare, wanted="torch", device="cpu").choice.precision == "bf16"


def test_model_that_openvino_does_not_take_is_left_to_torch(
    accepted: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("Exception from src/core.cpp:1:\ncould not create a primitive")

    monkeypatch.setattr("imaging.engines.openvino_engine.compiled", refuse)
    found = engines_of(accepted)
    assert found.choice.name == "torch"
    assert "could not create a primitive" in found.choice.why


def test_unknown_engine_is_refused(bare: Checkpoint) -> None:
    with pytest.raises(UnknownName, match="auto, torch, openvino"):
        engines_of(bare, wanted="tensorrt")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("switch", "expected"),
    [("AVX2", "ONEDNN_MAX_CPU_ISA=AVX2"), ("AVX512_CORE_VNNI", "ONEDNN_MAX_CPU_ISA=AVX512_CORE_VNNI"), ("ALL", ""),
     ("avx512_core_amx", ""), ("AVX512_CORE_BF16", ""), ("", "")],
)  # fmt: skip
def test_what_onednn_was_forbidden_is_known(monkeypatch: pytest.MonkeyPatch, switch: str, expected: str) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", switch)
    assert runtime.capped("bf16") == expected


@pytest.mark.parametrize(
    ("flags", "switch", "found"),
    [
        ("avx2 avx512f avx512_vnni avx512_bf16 amx_int8 amx_bf16", "", ("avx512f", "amx_bf16", "amx_int8")),
        ("avx2 avx512f avx512_vnni avx512_bf16 amx_int8 amx_bf16", "AVX512_CORE_BF16",
         ("avx512f", "avx512_bf16", "avx512_vnni")),
        ("avx2 avx512f avx512_vnni avx512_bf16", "AVX512_CORE_VNNI", ("avx512f", "", "avx512_vnni")),
        ("avx2 avx512f avx512_vnni avx512_bf16", "AVX512_CORE", ("avx512f", "", "")),
        ("avx2 avx512f avx512_vnni avx_vnni", "AVX2_VNNI", ("avx2", "", "avx_vnni")),
        ("avx2 avx512f", "AVX2", ("avx2", "", "")),
        ("sse4_2 avx", "", ("", "", "")),
    ],
)  # fmt: skip
def test_what_a_processor_computes_with_is_known(
    monkeypatch: pytest.MonkeyPatch, flags: str, switch: str, found: tuple[str, str, str]
) -> None:
    monkeypatch.setattr(runtime, "_flags", lambda: frozenset(flags.split()))
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", switch)
    assert tuple(runtime.instructions(precision) for precision in ("fp32", "bf16", "int8")) == found
    assert runtime.has_int8() is bool(found[2])


@pytest.mark.parametrize(
    ("compared", "good"),
    [
        (Compared(dice_with_torch=0.998, dice=0.899, dice_of_torch=0.9), True),
        (Compared(dice_with_torch=0.9979, dice=0.9, dice_of_torch=0.9), False),
        (Compared(dice_with_torch=0.9999, dice=0.8989, dice_of_torch=0.9), False),
        (Compared(difference=0.01, auc=0.9501, auc_of_torch=0.9504), True),
        (Compared(difference=0.0101, auc=0.95, auc_of_torch=0.95), False),
        (Compared(difference=0.001, auc=0.951, auc_of_torch=0.953), False),
        # What is not a number is written as null, and is nothing when it is read again.
        (Compared(difference=float("nan"), auc=0.95, auc_of_torch=0.95), False),
        (Compared(dice_with_torch=float("nan"), dice=0.9, dice_of_torch=0.9), False),
        (Compared(auc=0.95, auc_of_torch=0.95), False),
        (Compared(dice=0.9, dice_of_torch=0.9), False),
        (Compared(seen=0), True),
        (Compared(seen=1), False),
    ],
)
def test_what_is_good_enough(compared: Compared, good: bool) -> None:
    assert (compared.why_not() == "") is good


def test_file_that_was_changed_or_is_of_another_version_is_refused(accepted: Checkpoint, tmp_path: Path) -> None:
    (own,) = trials_of(accepted)
    assert own.why_not() == ""
    assert trials_of(accepted)[0].side == "validation"
    other = with_extras(tmp_path / "other", accepted, {}, {FILE: json.dumps({"trials": [{"speed": 3}]}).encode()})
    with pytest.raises(CheckpointCorrupt):
        engines_of(other)
    (other.folder / FILE).write_text("{}")
    with pytest.raises(CheckpointCorrupt):
        open_checkpoint(other.folder)


def test_engines_are_given_as_well_as_named(accepted: Checkpoint) -> None:
    from imaging.predict import Predictor

    engines = engines_of(accepted)
    assert isinstance(engines, Engines)
    assert Predictor(accepted, engine=engines).choice is engines.choice
