"""What the garbage collector is to look at in an environment that lives for many requests."""

from __future__ import annotations

import gc
from typing import TypeVar

Made = TypeVar("Made")

# Containers made and not yet freed before the collector looks. A batch of 1,000 events has 12,000 alive at
# once, all of them freed by their counts: with Python's 700 each would be looked at twice, for nothing.
YOUNG = 50_000


def settled(made: Made) -> Made:
    """What was made to last as long as the environment, which has all its modules now; called at its end.

    A full collection walks every object that modules have made, some hundred thousand, in the middle of a
    request, and none of them is ever freed. `gc.freeze` takes those that are there out of its sight, once.
    """
    if gc.get_threshold()[0] != YOUNG:  # not by what is frozen: Python 3.12 begins with 375 such objects
        gc.freeze()
        gc.set_threshold(YOUNG)
    return made
