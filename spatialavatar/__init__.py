"""SpatialAvatar: tracked head videos to animatable 3D Gaussian head avatars.

What imports what: the modules beside this one (files, configurations, errors) know of no package, and a package imports
from those above it alone. ``ray_jobs`` stands below all, and nothing here knows of it.

    unpickle
    head, splat
    clip, losses
    generator, shards
    avatar, training
    refine
    evaluation
    fleet
    report
    cli
"""

from spatialavatar.splat import process as process  # before anything starts threads; imports nothing heavy

__version__ = "0.1.0"
