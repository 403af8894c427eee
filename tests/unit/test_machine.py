from __future__ import annotations

import os

from timegrain.machine import num_cores


def test_the_cores_are_those_that_this_process_may_use():
    assert 1 <= num_cores() <= (os.cpu_count() or 1)
    if hasattr(os, "sched_setaffinity"):
        allowed = os.sched_getaffinity(0)
        try:
            os.sched_setaffinity(0, {min(allowed)})
            assert num_cores() == 1
        finally:
            os.sched_setaffinity(0, allowed)
