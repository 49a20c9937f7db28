"""The saved avatar: read, write, render, animate, export."""

from spatialavatar.avatar.avatar import Avatar, licence_note, read_avatar, write_avatar
from spatialavatar.avatar.rendering import AvatarRenderer, gaussians_for

__all__ = ["Avatar", "AvatarRenderer", "gaussians_for", "licence_note", "read_avatar", "write_avatar"]
