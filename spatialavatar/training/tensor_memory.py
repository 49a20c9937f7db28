"""Bytes of tensors: what a forward pass keeps for its backward pass, and most that are alive at a time.

What is kept is seen by hooks on saved tensors, what is alive by following every storage from the operation that makes
it to its end.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any
from weakref import finalize

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CASTS = "weights scaled or cast"


def saved_bytes(forward: Callable[[], Tensor], known: Iterable[Tensor], scope: Callable[[], str]) -> Counter[str]:
    """Bytes of storage that ``forward`` keeps for its backward pass, by what ``scope`` says at the time.

    Every storage counts once; those of ``known`` tensors do not. What is made of a known tensor has its sizes (another
    dtype under autocast, four axes where a convolution scales its weights), and is counted under CASTS: a batch shares
    it.
    """
    known = list(known)
    seen = {tensor.untyped_storage().data_ptr() for tensor in known}
    shapes = {_sides(tensor) for tensor in known}
    found: Counter[str] = Counter()

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            cast = _sides(tensor) in shapes and (tensor.dtype in (torch.bfloat16, torch.float16) or tensor.ndim == 4)
            found[CASTS if cast else scope()] += storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()  # lives until here, and with it all that was counted
    del result
    return found


def _sides(tensor: Tensor) -> tuple[int, ...]:
    return tuple(sorted(tensor.shape))


def peak_bytes(call: Callable[[], object], known: Iterable[Tensor]) -> int:
    """Most bytes of tensors that are alive at a time while ``call`` runs, beside the ``known`` ones."""
    with _Alive(known) as alive:
        call()
    return alive.peak


class _Alive(TorchDispatchMode):
    """Follows every storage from the operation that makes it to its end."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.peak = self._now = 0
        self._seen = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._seen:
            self._seen.add(key)
            self._now += size
            self.peak = max(self.peak, self._now)
            finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self._now -= size


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Of the tensors' values."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
