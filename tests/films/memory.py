"""How much memory Python's own objects take: that of rows, not of Arrow's tables."""

import tracemalloc


def peak(work):
    """Bytes that `work` holds at most, besides what there was before."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
