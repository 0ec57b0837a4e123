"""What the receiver refuses, told in the store: for metrics and the audit log.

Invariant: telling costs the receiver nothing, and nobody can fill the store by being refused: what one sender was
refused for is counted, and written as one event now and then.
"""

from __future__ import annotations

import threading
from collections import Counter

from pipelines.store import Store

# The receiver's code of an association that it rejected; the others are those of instances.
REJECTED = "association_rejected"
# So many senders are named between two events; the others are counted together.
_MOST = 20
_OTHERS = "others"


class Refusals:
    """Counts refusals, from any thread, until they are written."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str]] = Counter()
        self._counting = threading.Lock()

    def tell(self, code: str, source: str) -> None:
        """Somebody was refused something.

        Parameters
        ----------
        code
            Why.
        source
            Who, as `Intake.put` takes it.
        """
        with self._counting:
            known = (code, source) in self._counts or len(self._counts) < _MOST
            self._counts[code, source if known else _OTHERS] += 1

    def write(self, store: Store) -> None:
        """Write what was counted since the last time.

        Raises
        ------
        StoreFull, StoreBusy
            If it cannot be written; it is written the next time.
        """
        with self._counting:
            told = dict(self._counts)
        for (code, source), times in told.items():
            event = "association_refused" if code == REJECTED else "instance_refused"
            store.routes.told(event, {"code": code, "source": source, "times": times})
            with self._counting:
                self._counts[code, source] -= times
                if not self._counts[code, source]:
                    del self._counts[code, source]
