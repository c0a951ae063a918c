"""Several short samples in one sequence, none of them cut."""

from collections.abc import Iterable, Sequence

import numpy as np

_OPEN_ROWS = 64  # that are tried for each sample; more fill a little better and take longer


def pack(
    lengths: Sequence[int] | np.ndarray, order: Iterable[int], capacity: int
) -> list[list[int]]:
    """Put samples into rows: each into the first open row that has room, in the given order.

    A row is closed when so many others are open that it would have to be searched for too long; the
    fullest goes first. The result depends on the arguments alone.

    Args:
        lengths: tokens of each sample, at most `capacity`.
        order: numbers of samples.
        capacity: tokens of a row.

    Returns:
        The numbers of the samples in each row, rows in the order in which they were opened.
    """
    rows: list[list[int]] = []
    open_rows: list[int] = []
    room: list[int] = []  # of the open rows
    for sample in order:
        length = int(lengths[sample])
        place = next((i for i, left in enumerate(room) if left >= length), None)
        if place is None:
            if len(open_rows) == _OPEN_ROWS:
                fullest = min(range(len(room)), key=room.__getitem__)
                del open_rows[fullest], room[fullest]
            place = len(open_rows)
            open_rows.append(len(rows))
            room.append(capacity)
            rows.append([])
        rows[open_rows[place]].append(sample)
        room[place] -= length
        if room[place] == 0:
            del open_rows[place], room[place]
    return rows
