"""Avatars for other programs: plain 3D Gaussian splats, and the layout of GaussianAvatars."""

from spatialavatar.avatar.export.gaussian_avatars import write_gaussian_avatars
from spatialavatar.avatar.export.ply import read_ply, write_ply

__all__ = ["read_ply", "write_gaussian_avatars", "write_ply"]
