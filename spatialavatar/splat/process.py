"""What has to be arranged once per process for the CPU kernels, before numba is even imported (``cpu/runtime.py``)."""

import os
import threading

# Read once, when torch or numba loads OpenMP.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# Set in every process that was made by fork after this import: OpenMP's threads are missing there.
forked = threading.Event()
os.register_at_fork(after_in_child=forked.set)
