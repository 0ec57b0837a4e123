"""The torture suite: everything that hospitals send, in small, with the truth about it.

Each `Case` writes a folder and says which volumes a right reader makes of it and what it must refuse, by name. `wrong`
holds any reader's array and affine against that truth, so that a benchmark can use the same cases; nothing here needs
pytest.
"""

from __future__ import annotations

from collections.abc import Sequence

from torture_rows import coding, files, frames, kinds, protocol, stacks, values
from torture_rows.truth import Case, Expected, Field, Plane, Truth, misplacement, untold, wrong

__all__ = ["CASES", "Case", "Expected", "Field", "Plane", "Truth", "misplacement", "untold", "wrong"]

CASES: Sequence[Case] = tuple(
    case for room in (stacks, kinds, protocol, frames, values, coding, files) for row in room.ROWS for case in row.cases
)
