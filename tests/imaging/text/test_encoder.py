"""The encoder: which one, how texts come to it, and what is added."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from texts import ABNORMAL, NORMAL, tiny_encoder, toy_config

from imaging.config import Encoder, TextConfig, Tuning
from imaging.errors import EncoderUnusable, MissingPackage
from imaging.text.data import IDS, MASK, OWNER, batch_of
from imaging.text.encoder import Tokens, adapted, folder_of, load_encoder
from imaging.text.network import TextNetwork, load_trained, trained_of

pytest.importorskip("peft", reason="imgpipe[text] is not installed")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return tiny_encoder(tmp_path_factory.mktemp("encoder") / "tiny")


@pytest.fixture
def config(tmp_path: Path, encoder: dict[str, Any]) -> TextConfig:
    return toy_config(tmp_path, encoder, "kinds=[{name: finding, title: Finding}]")


LONG = ". ".join(NORMAL) + "."


def test_a_short_text_is_one_window(encoder: dict[str, Any]) -> None:
    encoded = Tokens(Encoder(**encoder))("The lungs are clear.")
    assert len(encoded.windows) == 1
    assert len(encoded.windows[0]) == 7  # five tokens and the two marks: what the file says of cutting does not count


def test_windows_of_a_long_text_overlap_and_leave_no_token_out(encoder: dict[str, Any]) -> None:
    settings = Encoder(**encoder)
    encoded = Tokens(settings)(LONG)
    whole = Tokens(Encoder(**{**encoder, "window": 64}))(LONG).windows[0][1:-1]
    inner = [window[1:-1] for window in encoded.windows]
    assert len(inner) == 2
    assert all(len(window) <= settings.window for window in encoded.windows)
    assert inner[0][-settings.overlap :] == inner[1][: settings.overlap]
    assert inner[0] + inner[1][settings.overlap :] == whole


def test_each_word_is_read_where_it_stands_farthest_from_an_edge(encoder: dict[str, Any]) -> None:
    tokens = Tokens(Encoder(**encoder))
    encoded = tokens(LONG)
    named = [encoded.windows[place[0]][place[1]] for place in encoded.places if place is not None]
    assert named == list(Tokens(Encoder(**{**encoder, "window": 64}))(LONG).windows[0][1:-1])
    changes = [place[0] for place in encoded.places if place is not None]
    # 30 tokens in the first window, of which 8 are shared: the last four of these are better placed in the second.
    assert changes == [0] * 26 + [1] * (len(changes) - 26)


def test_a_word_that_the_tokenizer_drops_has_no_place(encoder: dict[str, Any]) -> None:
    encoded = Tokens(Encoder(**encoder))("clear \u0301 lungs")
    assert [place is None for place in encoded.places] == [False, True, False]


@pytest.mark.parametrize(("key", "file"), [("sha256", "model"), ("tokenizer_sha256", "tokenizer")])
def test_another_encoder_is_refused(encoder: dict[str, Any], key: str, file: str) -> None:
    settings = Encoder(**{**encoder, key: "0" * 64})
    with pytest.raises(EncoderUnusable, match=file):
        Tokens(settings)
        load_encoder(settings)


def test_weights_in_a_pickle_are_not_looked_at(encoder: dict[str, Any], tmp_path: Path) -> None:
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(EncoderUnusable, match=r"no model\.safetensors"):
        folder_of(Encoder(**{**encoder, "folder": str(tmp_path)}))


def test_a_package_that_is_not_there_is_told(encoder: dict[str, Any]) -> None:
    settings = Encoder(**{**encoder, "folder": None, "package": "no_such_package_of_weights"})
    with pytest.raises(MissingPackage, match="no_such_package_of_weights is not installed"):
        folder_of(settings)


def test_another_kind_of_network_is_refused(encoder: dict[str, Any], tmp_path: Path) -> None:
    for name in ("model.safetensors", "tokenizer.json"):
        (tmp_path / name).write_bytes((Path(encoder["folder"]) / name).read_bytes())
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(EncoderUnusable, match="gpt2"):
        load_encoder(Encoder(**{**encoder, "folder": str(tmp_path)}))


@pytest.mark.parametrize("method", ["lora", "ia3"])
def test_what_is_added_begins_as_nothing_and_is_all_that_is_trained(encoder: dict[str, Any], method: str) -> None:
    settings = Encoder(**encoder)
    ids = torch.arange(12).reshape(2, 6)
    plain = load_encoder(settings).eval()
    before = plain(input_ids=ids).last_hidden_state
    own = {name for name, _ in plain.named_parameters()}
    changed = adapted(load_encoder(settings), Tuning(method=method, rank=2)).eval()
    assert torch.equal(changed(input_ids=ids).last_hidden_state, before)
    trained = {name for name, parameter in changed.named_parameters() if parameter.requires_grad}
    assert trained
    assert trained.isdisjoint(own)


@pytest.mark.parametrize("method", ["lora", "ia3"])
def test_what_is_trained_has_all_its_digits_beside_frozen_weights_that_have_few(
    encoder: dict[str, Any], method: str
) -> None:
    changed = adapted(load_encoder(Encoder(**encoder), dtype=torch.bfloat16), Tuning(method=method, rank=2))
    dtypes = {parameter.requires_grad: parameter.dtype for parameter in changed.parameters()}
    assert dtypes == {True: torch.float32, False: torch.bfloat16}
    with torch.autocast("cpu", torch.bfloat16):
        found = changed(input_ids=torch.arange(12).reshape(2, 6)).last_hidden_state
    found.float().sum().backward()
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in changed.parameters())


def said(network: TextNetwork, tokens: Tokens, *texts: str) -> tuple[torch.Tensor, torch.Tensor]:
    batch = batch_of([tokens(text) for text in texts])
    with torch.inference_mode():
        found = network.eval()(batch[IDS], batch[MASK], batch[OWNER], len(texts))
    assert found.classes_BK is not None
    assert found.tags_WLT is not None
    return found.classes_BK, found.tags_WLT


def test_what_a_text_is_does_not_depend_on_the_texts_beside_it(config: TextConfig) -> None:
    network, tokens = TextNetwork(config), Tokens(config.encoder)
    texts = [LONG, *NORMAL, *ABNORMAL]
    together, _ = said(network, tokens, *texts)
    for at, text in enumerate(texts):
        alone, _ = said(network, tokens, text)
        torch.testing.assert_close(together[at : at + 1], alone, atol=1e-5, rtol=1e-5)


def test_each_window_keeps_its_own_tags(config: TextConfig) -> None:
    network, tokens = TextNetwork(config), Tokens(config.encoder)
    _, tags_WLT = said(network, tokens, NORMAL[0], LONG, ABNORMAL[0])
    _, alone_WLT = said(network, tokens, LONG)
    length = alone_WLT.shape[1]
    torch.testing.assert_close(tags_WLT[1:3, :length], alone_WLT, atol=1e-5, rtol=1e-5)


def test_only_what_was_trained_is_published_and_it_is_loaded_whole(config: TextConfig) -> None:
    torch.manual_seed(1)
    first, second = TextNetwork(config), TextNetwork(config)
    with torch.no_grad():
        for parameter in trained_of(first).values():
            parameter.normal_()
    weights = {name: tensor.clone() for name, tensor in trained_of(first).items()}
    assert sum(tensor.numel() for tensor in weights.values()) < 0.5 * sum(p.numel() for p in first.parameters())
    assert not any("embeddings" in name for name in weights)
    tokens = Tokens(config.encoder)
    load_trained(second, weights)
    assert torch.equal(said(first, tokens, LONG)[0], said(second, tokens, LONG)[0])
    with pytest.raises(KeyError, match="1 names differ"):
        load_trained(second, dict(list(weights.items())[1:]))
