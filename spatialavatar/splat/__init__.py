"""Gaussians, their binding to triangles, cameras, and the splatter."""

import os

# Read once, when torch or numba loads OpenMP: see splat/cpu/runtime.py.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
