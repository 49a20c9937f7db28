"""Morphable heads: the model, its file, converters, the canonical form and the UV layout."""

from spatialavatar.head.file import read_head, write_head
from spatialavatar.head.model import JOINTS, HeadInfo, HeadModel
from spatialavatar.head.params import HeadParams
from spatialavatar.head.uv_layout import UVLayout, build_layout, texel_spacing

__all__ = [
    "JOINTS",
    "HeadInfo",
    "HeadModel",
    "HeadParams",
    "UVLayout",
    "build_layout",
    "read_head",
    "texel_spacing",
    "write_head",
]
