"""Tracked clips: folder format, reader, writer, checks, inspection pictures, importers, synthetic captures."""

from spatialavatar.clip.header import ClipSource, Fault, FrameIndex
from spatialavatar.clip.pictures import EncodedFrame
from spatialavatar.clip.tracked_clip import Frame, TrackedClip, open_clip
from spatialavatar.clip.validate import validate_clip
from spatialavatar.clip.writer import save_clip, write_clip, write_synthetic

__all__ = [
    "ClipSource",
    "EncodedFrame",
    "Fault",
    "Frame",
    "FrameIndex",
    "TrackedClip",
    "open_clip",
    "save_clip",
    "validate_clip",
    "write_clip",
    "write_synthetic",
]
