"""What is refused of a PACS and by it: associations, instances on their way, answers of the other side.

Each class says whether trying again later may help (`transient`): whoever delivers goes by that and not by the text.
"""

from __future__ import annotations

from typing import ClassVar

from imaging.errors.tree import InputRefused, InternalFault, WrongUsage

# ----------------------------------------------------------------------------------------------------------- receiving


class ListenImpossible(WrongUsage):
    """The receiver, or the page, cannot listen where it was asked to."""

    code = "listen_impossible"
    expected = "an address with a free port was expected"
    remedy = "Give another port"


class InstanceMismatch(InputRefused):
    """The data set that was sent is another instance, or of another class, than the message around it says."""

    code = "instance_mismatch"
    expected = "a data set with the SOP class and instance UID of its C-STORE request was expected"
    remedy = "Send the instance again from its source"


class InstanceTooLarge(InputRefused):
    """An instance, or a message about instances, that is larger than the receiver takes."""

    code = "instance_too_large"
    expected = "an instance within the receiver's bound was expected"
    remedy = "Raise the receiver's bound if there really are such instances"


class DiskMarkReached(WrongUsage):
    """The disk is filled beyond the receiver's high mark; what is sent now is refused, and nothing is lost."""

    code = "disk_mark_reached"
    expected = "a disk below the high mark was expected"
    remedy = "Free space; the sender keeps what was refused and sends it again"


class ReceiverFault(InternalFault):
    """Taking an instance in failed in a way that nobody foresaw; it was not acknowledged, and its sender keeps it."""

    code = "receiver_fault"
    expected = "an instance that is taken or refused by name was expected"
    remedy = "Report it with the log of the watcher; the sender sends the instance again"


# ---------------------------------------------------------------------------------------------------------- delivering


class PeerFault(WrongUsage):
    """The other side of a connection did not do what was asked of it."""

    transient: ClassVar[bool] = False


class PeerUnreachable(PeerFault):
    """Nobody answers at the address, or not in time."""

    code = "peer_unreachable"
    transient = True
    expected = "a peer that answers was expected"
    remedy = "See that it runs and that host and port are right; it is tried again"


class AssociationRejected(PeerFault):
    """The peer refuses every association from us."""

    code = "association_rejected"
    expected = "an association was expected"
    remedy = "Make our AE title known to the peer, and call it by its own"


class AssociationDeferred(PeerFault):
    """The peer refuses an association for now."""

    code = "association_deferred"
    transient = True
    expected = "an association was expected"
    remedy = "Nothing to do: it is tried again"


class AssociationLost(PeerFault):
    """The association was aborted or broke while it was used."""

    code = "association_lost"
    transient = True
    expected = "an association that holds until it is released was expected"
    remedy = "Nothing to do: it is tried again"


class ContextRefused(PeerFault):
    """The peer takes no instances of this SOP class in this transfer syntax."""

    code = "context_refused"
    expected = "a peer that takes the SOP class and the transfer syntax was expected"
    remedy = "Let the peer take this class, or send it another kind of output"


class StorageRefused(PeerFault):
    """The peer understood and will not keep the instance."""

    code = "storage_refused"
    expected = "status 0000 (or a warning, Bxxx) was expected"
    remedy = "Look the status up in the peer's log and conformance statement"


class StorageDeferred(PeerFault):
    """The peer cannot keep the instance now."""

    code = "storage_deferred"
    transient = True
    expected = "status 0000 (or a warning, Bxxx) was expected"
    remedy = "See to the peer's disk; it is tried again"


class NotConfirmed(PeerFault):
    """The peer took the instance and, asked again, does not say that it has it."""

    code = "not_confirmed"
    transient = True
    expected = "an instance that the peer has when it is asked was expected"
    remedy = "See the peer's log; it is sent again"


class QueryFailed(PeerFault):
    """The peer was asked what it has, and its answer is none."""

    code = "query_failed"
    transient = True
    expected = "matches and then status 0000 was expected"
    remedy = "Let the peer answer C-FIND (Study Root) from our AE title"


class WebRefused(PeerFault):
    """A DICOMweb server refuses the request."""

    code = "web_refused"
    expected = "an HTTP status of 200 or 202 was expected"
    remedy = "Check URL, token and what the server lets you do"


class WorkitemLost(PeerFault):
    """A workitem of a worklist is not in our hands: somebody else has it, or it was ended."""

    code = "workitem_lost"
    expected = "a workitem that we have claimed was expected"
    remedy = "Nothing to do; the worklist says who has it"


class WebUnavailable(PeerFault):
    """A DICOMweb server is there and cannot answer now, or its answer ends before its time."""

    code = "web_unavailable"
    transient = True
    expected = "a whole answer was expected"
    remedy = "See that the server runs; it is tried again"
