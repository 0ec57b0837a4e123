"""Instances that are pseudonymised before anything of them is kept: `incoming` in a file of rules.

Invariant: of an instance that such a rule takes, nothing but the pseudonymous copy comes into the store, and what it
stands for is in the crosswalk, on disk, before that. What cannot be pseudonymised is refused and not kept; so is, while
there are such rules, what does not say enough of itself to be judged by them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from imaging.dicom.attributes import read_facts
from imaging.dicom.deidentify import Crosswalk, Deidentified, Options, Pseudonyms, deidentified, read_key
from imaging.errors import InputRefused, KeyInvalid, UnreadableDicom
from imaging.files import sha256_of
from pipelines.router import read_told, told_by
from pipelines.routing import Incoming
from pipelines.store import Received, Store

Rules = Callable[[], Sequence[Incoming]]


class Hidden:
    """An intake before a store; it takes files, too, and answers for original UIDs.

    Parameters
    ----------
    store
        Gets what may be kept.
    rules
        Gives those of now; without any, all goes into the store as it is.
    """

    def __init__(self, store: Store, rules: Rules) -> None:
        self._store, self._rules = store, rules
        self._crosswalks: dict[tuple[Path, Path], Crosswalk] = {}

    def put(
        self,
        data: bytes | memoryview,
        *,
        sop_instance_uid: str,
        sop_class_uid: str,
        series_uid: str,
        study_uid: str,
        transfer_syntax: str,
        source: str,
    ) -> Received:
        """Keep one instance for good; see `pipelines.store.Intake.put`.

        Raises
        ------
        InputRefused
            If it would have to be pseudonymised and cannot be.
        KeyInvalid, OutputNotWritable
            If key or crosswalk cannot be used.
        """
        if self._rules():
            with _in_memory(data) as path:
                made = self._made(path, source, f"instance {sop_instance_uid}")
            if made is not None:
                return self._put(made, sop_class_uid, transfer_syntax, source)
        return self._store.put(data, sop_instance_uid=sop_instance_uid, sop_class_uid=sop_class_uid,
                               series_uid=series_uid, study_uid=study_uid, transfer_syntax=transfer_syntax,
                               source=source)  # fmt: skip

    def take(self, path: Path, *, source: str) -> Received:
        """Move a file in; see `Store.take`. What is refused here stays where it is."""
        if not self._rules():
            return self._store.take(path, source=source)
        subject = _subject(path)
        try:
            made = self._made(path, source, subject)
        except InputRefused as error:
            self._store.routes.told("file_refused", {"source": source, **error.as_dict()})
            raise
        if made is None:
            return self._store.take(path, source=source)
        instance = read_facts(path).instance
        received = self._put(made, instance.sop_class_uid, instance.pixels.transfer_syntax, source)
        path.unlink(missing_ok=True)
        return received

    def refuse(self, path: Path, errors: Sequence[InputRefused], *, source: str) -> InputRefused:
        """Tell why a file is not taken; see `Store.refuse`. Where there are rules it stays where it is."""
        if not self._rules():
            return self._store.refuse(path, errors, source=source)
        subject = _subject(path)
        told = [type(error)(subject, seen=error.seen, expected=error.expected, remedy=error.remedy)
                for error in errors]  # fmt: skip
        for error in told:
            self._store.routes.told("file_refused", {"source": source, **error.as_dict()})
        return told[0]

    def holds(self, sop_instance_uid: str) -> str | None:
        """`Store.holds` of an instance by the UID that it came with."""
        return self._first(self._store.holds, sop_instance_uid)

    def knows(self, sop_instance_uid: str) -> str | None:
        """`Store.knows` of an instance by the UID that it came with."""
        return self._first(self._store.knows, sop_instance_uid)

    def _first(self, ask: Callable[[str], str | None], uid: str) -> str | None:
        names = (Pseudonyms(read_key(rule.deidentify.key)).uid(uid) for rule in self._rules())
        return next((found for name in (uid, *names) if (found := ask(name)) is not None), None)

    def _made(self, path: Path, source: str, subject: str) -> Deidentified | None:
        """The pseudonymous copy of an instance; None where no rule takes it."""
        try:
            facts = read_facts(path)
            sender = source.removeprefix("scp ").rpartition("@")[0] if source.startswith("scp ") else ""
            told = told_by(facts.instance.study_uid, [(read_told(path), 1)], frozenset({sender} - {""}))
            rule = next((rule for rule in self._rules() if rule.when.takes(told)), None)
            if rule is None:
                return None
            wanted = rule.deidentify.model_dump(exclude={"key"})
            names = Pseudonyms(read_key(rule.deidentify.key))
            made = deidentified(path, names, Options(**wanted))
        except InputRefused as error:  # the place of a moment says nothing
            raise type(error)(subject, seen=error.seen, expected=error.expected, remedy=error.remedy) from error
        if rule.crosswalk is not None:
            self._crosswalk(rule.crosswalk, rule.deidentify.key).note(names)
        return made

    def _crosswalk(self, path: Path, key: Path) -> Crosswalk:
        if (path, key) not in self._crosswalks:
            self._crosswalks[path, key] = Crosswalk(path, read_key(key))
        return self._crosswalks[path, key]

    def _put(self, made: Deidentified, sop_class_uid: str, transfer_syntax: str, source: str) -> Received:
        return self._store.put(made.content, sop_instance_uid=made.sop_instance_uid, sop_class_uid=sop_class_uid,
                               series_uid=made.series_uid, study_uid=made.study_uid, transfer_syntax=transfer_syntax,
                               source=source)  # fmt: skip


def _subject(path: Path) -> str:
    """What a file is called where it is told of, for its own name may be a patient's.

    Raises
    ------
    UnreadableDicom
        If it cannot be opened.
    """
    try:
        return f"file {sha256_of(path)[:16]}"
    except OSError as error:
        raise UnreadableDicom(path, seen=f"cannot be opened ({error.strerror})") from error


def check_places(rules: Sequence[Incoming], store: Path) -> None:
    """See that what leads back to people lies apart from what must not.

    Raises
    ------
    KeyInvalid
        If a key or a crosswalk lies in the store, or a crosswalk is none or of another key.
    """
    for rule in rules:
        for secret in (rule.deidentify.key, rule.crosswalk):
            if secret is not None and secret.resolve().is_relative_to(store.resolve()):
                raise KeyInvalid(secret, seen="it lies in the store", remedy="Keep it apart from the images")
        if rule.crosswalk is not None:
            Crosswalk(rule.crosswalk, read_key(rule.deidentify.key))


@contextmanager
def _in_memory(data: bytes | memoryview) -> Iterator[Path]:
    """Bytes as a file that lies on no disk (memfd_create(2))."""
    descriptor = os.memfd_create("instance", os.MFD_CLOEXEC)
    try:
        with os.fdopen(os.dup(descriptor), "wb") as stream:
            stream.write(data)
        yield Path(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
