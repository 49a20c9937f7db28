"""SpatialAvatar: tracked head videos to animatable 3D Gaussian head avatars."""

from spatialavatar.splat import process as process  # before anything starts threads; imports nothing heavy

__version__ = "0.1.0"
