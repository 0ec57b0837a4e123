"""Sessions, seals, and whose names the page answers to."""

from __future__ import annotations

from pathlib import Path

import pytest

from imaging.errors import ConfigInvalid, ListenImpossible
from pipelines.web.doors import Doors, is_loopback, read_token
from pipelines.web.page import Address, Page, _bound

TOKEN = "0123456789abcdef0123"


def test_only_the_token_is_the_token_and_without_one_nothing_is() -> None:
    doors = Doors(TOKEN)
    assert doors.is_token(TOKEN)
    assert not doors.is_token(TOKEN[:-1])
    assert not doors.is_token("")
    assert not Doors(None).is_token("")


def test_a_session_ends_when_it_is_closed_or_idle_and_the_oldest_when_there_are_too_many() -> None:
    doors = Doors(TOKEN)
    first = doors.open()
    assert doors.knows(first)
    doors.close(first)
    assert not doors.knows(first)
    assert not doors.knows("another")
    assert not Doors(TOKEN, idle_s=-1).knows(doors.open())
    oldest, kept = doors.open(), doors.open()
    assert doors.knows(oldest)
    assert doors.knows(kept)
    for _ in range(1000 - 2):
        doors.open()
    assert doors.knows(kept)
    doors.open()
    assert not doors.knows(oldest)
    assert doors.knows(kept)


def test_a_seal_is_of_one_session_and_one_watcher() -> None:
    doors = Doors(TOKEN)
    seal = doors.seal("a")
    assert doors.is_seal(seal, "a")
    assert not doors.is_seal(seal, "b")
    assert not doors.is_seal(doors.seal(""), "")
    assert not Doors(TOKEN).is_seal(seal, "a")
    assert not doors.is_seal("é", "a")


@pytest.mark.parametrize("host", ["127.0.0.1:8080", "localhost", "LOCALHOST:1", "[::1]:8080", "127.9.9.9"])
def test_it_answers_to_this_machines_own_names(host: str) -> None:
    assert Doors(None).answers_to(host)


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8080", "127.0.0.1.evil.example", "", "192.0.2.1:80"])
def test_it_answers_to_no_other_name_unless_who_looks_signs_in(host: str) -> None:
    assert not Doors(None).answers_to(host)
    assert Doors(TOKEN).answers_to(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_it_is_not_shown_to_other_machines_without_a_token(host: str) -> None:
    assert not is_loopback(host)
    with pytest.raises(ConfigInvalid, match="sign in"):
        _bound(Address(host, 0))


def test_with_a_token_it_may_be() -> None:
    with _bound(Address("0.0.0.0", 0, TOKEN)) as listening:
        assert listening.getsockname()[1] > 0


def test_an_address_in_use_or_unknown_is_told() -> None:
    with _bound(Address("127.0.0.1", 0)) as listening, pytest.raises(ListenImpossible):
        _bound(Address("127.0.0.1", listening.getsockname()[1]))
    with pytest.raises(ListenImpossible):
        _bound(Address("no.such.host.invalid", 0, TOKEN))


@pytest.mark.parametrize("text", ["8080", ":8080", "localhost", "localhost:x", "localhost:70000"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ConfigInvalid):
        Address.parse(text)


def test_addresses_of_both_kinds_are_read() -> None:
    assert Address.parse("localhost:8080") == Address("localhost", 8080)
    assert Address.parse("[::1]:8080", TOKEN) == Address("::1", 8080, TOKEN)


@pytest.mark.parametrize("content", [b"short", b"", b"two words of a certain length", b"\xff" * 30, b"a\nb" * 10])
def test_a_short_token_or_none_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "token").write_bytes(content)
    with pytest.raises(ConfigInvalid):
        read_token(tmp_path / "token")
    with pytest.raises(ConfigInvalid):
        read_token(tmp_path / "none")


def test_a_token_is_the_line_of_its_file(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    assert read_token(tmp_path / "token") == TOKEN


def test_a_page_needs_a_store_that_is_there(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="store_full"):
        Page(tmp_path / "none", Address("127.0.0.1", 0), tmp_path / "audit")
