"""SpatialAvatar: tracked head videos to animatable 3D Gaussian head avatars."""

__version__ = "0.1.0"
