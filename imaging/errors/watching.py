"""What is refused of the watcher's store, of its jobs and of what they deliver."""

from __future__ import annotations

from imaging.errors.tree import InputRefused, WrongUsage

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
