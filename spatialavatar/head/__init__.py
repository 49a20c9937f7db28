"""Morphable heads: the model, its file, converters, the canonical form and the UV layout."""

from spatialavatar.head.file import head_from_arrays, read_head, write_head
from spatialavatar.head.model import JOINTS, HeadInfo, HeadModel
from spatialavatar.head.params import HeadParams
from spatialavatar.head.reference import HeadReference, builtin_head, find_head
from spatialavatar.head.uv_layout import UVLayout, build_layout, texel_spacing

__all__ = [
    "JOINTS",
    "HeadInfo",
    "HeadModel",
    "HeadParams",
    "HeadReference",
    "UVLayout",
    "build_layout",
    "builtin_head",
    "find_head",
    "head_from_arrays",
    "read_head",
    "texel_spacing",
    "write_head",
]
