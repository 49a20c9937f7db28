"""The saved avatar: read, write, render, reconstruct, bake, animate, export."""

from spatialavatar.avatar.avatar import Avatar, GeneratedAppearance, StaticAppearance, licence_note
from spatialavatar.avatar.bake import bake, bake_at_reference
from spatialavatar.avatar.file import read_avatar, write_avatar
from spatialavatar.avatar.rendering import AvatarRenderer

__all__ = [
    "Avatar",
    "AvatarRenderer",
    "GeneratedAppearance",
    "StaticAppearance",
    "bake",
    "bake_at_reference",
    "licence_note",
    "read_avatar",
    "write_avatar",
]
