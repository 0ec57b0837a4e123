"""Some hundred broken files through the reader; `make fuzz` sends 20,000. And the fuzzer itself, which must notice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from fuzz import Fuzzer, Mutant, mutant, store
from mutations import MUTATIONS, encoded, layout

SEED = 7
MUTANTS = 300

READERS = """
import os, time

def fails(folder, policy):
    raise KeyError("not a refusal")

def crashes(folder, policy):
    os.abort()

def hangs(folder, policy):
    time.sleep(30)

def waits(folder, policy):
    time.sleep(0.8 if policy == "repair" else 0)
    return ["read"]

def grows(folder, policy):
    return [str(len(bytearray(os.urandom(1024)) * (300 * 1024)))]

def leaves_a_process_that_grows(folder, policy):
    pid = os.fork()
    if not pid:
        content = bytearray(os.urandom(1024)) * (300 * 1024)
        os._exit(len(content) % 2)
    os.waitpid(pid, 0)
    return ["read"]

def reads(folder, policy):
    return ["read"]
"""


def test_broken_files_are_read_or_refused_by_name() -> None:
    summary = Fuzzer(SEED).run(range(MUTANTS), jobs=2)
    assert [(item.number, item.kind, item.detail) for item in summary.failures] == []
    assert summary.mutants == MUTANTS
    # The mutants get beyond the door: volumes are read, frames decoded, and every part of the reader refuses some.
    assert summary.met["read"] > MUTANTS / 20
    assert summary.met["frame read"] > MUTANTS / 5
    expected = {"not_dicom", "unreadable_dicom", "truncated_pixels", "invalid_geometry", "frame undecodable_pixels"}
    assert set(summary.met) >= expected


@pytest.mark.parametrize(
    ("reader", "kind", "detail", "fuzzer"),
    [
        ("fails", "exception", "KeyError: 'not a refusal'", Fuzzer()),
        ("crashes", "crash", "status -6", Fuzzer()),
        ("hangs", "hang", "no answer", Fuzzer(seconds=0.2, startup=0.2)),
        ("waits", "hang", "repair: ", Fuzzer(seconds=0.5)),
        ("grows", "memory", "MB", Fuzzer(megabytes=200)),
        ("leaves_a_process_that_grows", "memory", "MB", Fuzzer(megabytes=200)),
    ],
)
def test_a_bad_reader_is_noticed(tmp_path: Path, reader: str, kind: str, detail: str, fuzzer: Fuzzer) -> None:
    path = tmp_path / "bad.py"
    path.write_text(READERS)
    summary = replace(fuzzer, seed=SEED, reader=f"{path}:{reader}").run(range(2), jobs=2)
    assert [(item.number, item.kind) for item in summary.failures] == [(0, kind), (1, kind)]
    assert all(detail in item.detail for item in summary.failures)
    store(summary.failures, SEED, tmp_path / "kept")
    kept = tmp_path / "kept" / f"{SEED}_0_{kind}"
    assert detail in (kept / "about.txt").read_text()
    assert {name: (kept / name).read_bytes() for name, _ in mutant(SEED, 0).files} == dict(mutant(SEED, 0).files)


def test_a_good_reader_passes_the_same_limits(tmp_path: Path) -> None:
    path = tmp_path / "good.py"
    path.write_text(READERS)
    summary = Fuzzer(SEED, f"{path}:reads", megabytes=200).run(range(2))
    assert summary.failures == []
    assert summary.met == {"read": 4}


def test_a_mutant_is_a_function_of_its_seed_and_number() -> None:
    assert [mutant(1, number) for number in range(5)] == [mutant(1, number) for number in range(5)]
    assert mutant(1, 0) != mutant(2, 0)


def test_every_mutation_is_made_and_most_mutants_differ() -> None:
    mutants: list[Mutant] = [mutant(SEED, number) for number in range(400)]
    assert {name for item in mutants for name in item.mutations} == {mutation.__name__ for mutation in MUTATIONS}
    assert len({item.files for item in mutants}) > 0.95 * len(mutants)


def test_the_layout_of_a_file_is_found_at_all_depths(data: Path) -> None:
    content = (data / "philips_mr_enhanced" / "IM_0027_fMAP.dcm").read_bytes()
    at = layout(content)
    assert at[-1].tag == 0x7FE00010
    assert at[-1].length == 64 * 64 * 64 * 2
    # The position of each of 64 frames lies three sequences deep: in Plane Position and in the maker's private copy.
    assert sum(element.tag == 0x00200032 for element in at) == 2 * 64
    for element in at:
        if element.vr not in (b"", b"SQ"):
            value = content[element.value : element.end]
            assert encoded(element, element.tag, element.vr, value) == content[element.start : element.end]
