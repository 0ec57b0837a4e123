"""What is refused of the watcher's store, of its jobs and of what they deliver."""

from __future__ import annotations

from imaging.errors.tree import InputRefused, InternalFault, WrongUsage

# --------------------------------------------------------------------------------------------------------------- store


class StoreFull(WrongUsage):
    """The store's disk has no room, or cannot be written; what was not acknowledged is not kept."""

    code = "store_full"
    expected = "a store that can be written was expected"
    remedy = "Free space or mend the disk; what was refused is sent again by its sender"


class StoreBusy(WrongUsage):
    """Somebody else holds the store's database for longer than is waited."""

    code = "store_busy"
    expected = "a database that can be written within the time limit was expected"
    remedy = "End the program that holds it, such as a backup or an SQLite shell; the watcher tries again"


class StoreInUse(WrongUsage):
    """Another watcher works on this store."""

    code = "store_in_use"
    expected = "a store without a watcher was expected"
    remedy = "Stop the other watcher, or give another --store"


class StoreDamaged(InputRefused):
    """The store's database fails its integrity check, or is of a newer version of imgpipe."""

    code = "store_damaged"
    expected = "a whole database of this version or an older one was expected"
    remedy = "Restore the database from a copy, or begin a new store and send the studies again"


# ---------------------------------------------------------------------------------------------------------------- jobs


class UnknownJob(WrongUsage):
    """No job has this number, name or StudyInstanceUID."""

    code = "unknown_job"
    expected = "the number of a job, at least six characters of its name, or a StudyInstanceUID was expected"
    remedy = "Look it up with `imgpipe jobs list`"


class IllegalMove(WrongUsage):
    """A job cannot go from where it is to where it should."""

    code = "illegal_move"
    expected = "one of the moves of pipelines/store/moves.py was expected"
    remedy = "Look with `imgpipe jobs show` where it is"


class NoRule(InputRefused):
    """No rule of the watcher takes the study; its images are kept."""

    code = "no_rule"
    expected = "a rule whose `when` takes the study was expected"
    remedy = "Add a rule (`imgpipe watch --dry-run` shows which one takes what), then `imgpipe jobs retry`"


class InstancesPurged(InputRefused):
    """Some images of the study were removed after an earlier report, and it cannot be read without them."""

    code = "instances_purged"
    expected = "all images of the study were expected"
    remedy = "Send the whole study again, then `imgpipe jobs retry`"


class InterruptedTooOften(InternalFault):
    """Each time that the job was begun, the watcher ended before the job did."""

    code = "interrupted_too_often"
    expected = "a job that comes to its end was expected"
    remedy = "Look whether memory runs out on this study, then `imgpipe jobs retry`"


class WorkerLost(InternalFault):
    """The process that worked on a study ended without a word: killed by the system, or by a fault of a library."""

    code = "worker_lost"
    expected = "the process was expected to end the study"
    remedy = "Look whether memory runs out; after the last try `imgpipe jobs retry` runs it again"


class StudyOverdue(InternalFault):
    """A study took longer than one of its size may, or its process showed no sign of life, and was ended."""

    code = "study_overdue"
    expected = "a report within the time limit was expected"
    remedy = "Give a longer --time-limit if the machine is slow; `imgpipe jobs retry` runs it again"


class DeliveryFailed(WrongUsage):
    """A result could not be brought to its destination, or is not what it should be there."""

    code = "delivery_failed"
    expected = "the whole result at its destination was expected"
    remedy = "Mend the destination; the delivery is tried again, and after the last try by `imgpipe jobs release`"
