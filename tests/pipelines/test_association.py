"""What an association says is what pynetdicom would say, and nobody in it waits for what has come."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pacs import ct
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom import AE
from pynetdicom.dimse_messages import C_STORE_RSP
from pynetdicom.dimse_primitives import C_STORE

from pipelines import association as room
from pipelines.association import VERIFICATION, stored
from pipelines.receive import Listening, Receiver
from pipelines.store import Received


class Taken:
    """An intake that keeps nothing."""

    def put(self, _data: Any, **_names: str) -> Received:
        return Received.NEW


@pytest.mark.parametrize("uid", ["1.2", "2.25.1", "1." * 31 + "10"], ids=["odd", "even", "longest"])
@pytest.mark.parametrize("number", [0, 1, 0xFFFF])
def test_the_answer_made_by_hand_is_the_one_that_pynetdicom_makes(uid: str, number: int) -> None:
    answer, theirs = C_STORE(), C_STORE_RSP()
    answer.MessageID = answer.MessageIDBeingRespondedTo = number
    answer.AffectedSOPClassUID, answer.AffectedSOPInstanceUID, answer.Status = CTImageStorage, uid, 0
    theirs.primitive_to_message(answer)
    [data] = theirs.encode_msg(1, 16384)
    assert data.presentation_data_value_list == [(1, b"\3" + stored(answer))]


@pytest.mark.parametrize("longest", [16384, 64], ids=["in one piece", "in pieces"])
def test_requests_and_the_release_are_seen_when_they_come(
    longest: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # Whoever is not woken would come too late: who asks waits for 20 s.
    monkeypatch.setattr(room, "_RESTING_S", 60.0)
    entity = AE("SCU")
    entity.maximum_pdu_size = longest
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = 20
    entity.add_requested_context(VERIFICATION)
    entity.add_requested_context(CTImageStorage, [ExplicitVRLittleEndian])
    with Receiver(Listening("IMGPIPE", 0, host="127.0.0.1"), Taken(), folder=tmp_path) as receiver:
        association = entity.associate("127.0.0.1", receiver.port, ae_title="IMGPIPE")
        assert association.is_established
        assert [association.send_c_store(ct(number)).Status for number in (1, 2)] == [0, 0]
        assert association.send_c_echo().Status == 0
        association.release()
        assert association.is_released
        assert receiver.counts == {"new": 2}
