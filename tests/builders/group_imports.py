"""What processes of a group import of other people's, for the one that they are forks of: most of their time otherwise.

Nothing of ours: the CPU kernels refuse to run in forks of a process that has them.
"""

import contextlib
import os

os.environ |= {"OMP_WAIT_POLICY": "passive", "DS_ACCELERATOR": "cpu", "DS_IGNORE_CUDA_DETECTION": "1"}

import lpips  # noqa: F401
import numba  # noqa: F401
import torch.distributed
import torch.utils.tensorboard  # noqa: F401

with contextlib.suppress(ImportError):
    import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401
