"""The tests. Two processes of them run side by side, so each computes on one thread unless a test asks for more."""

import os

# Before torch is imported: threads that start later, as the engine's does, take their number from here.
os.environ.setdefault("OMP_NUM_THREADS", "1")
