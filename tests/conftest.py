"""Settings of the whole suite, made before torch is imported."""

import os

# Tiny models gain nothing from threads, and threads that wait for one another lose a lot on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("DS_ACCELERATOR", "cpu")


def pytest_collection_modifyitems(config, items):
    """Leaves the sweep over all families out unless an expression of markers speaks of it."""
    if "sweep" in (config.option.markexpr or ""):
        return
    left_out = [item for item in items if item.get_closest_marker("sweep")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
