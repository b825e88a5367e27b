"""Settings of the whole suite, made before torch is imported."""

import os

# Tiny models gain nothing from threads, and threads that wait for one another lose a lot on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
