"""The CUDA splatter: gsplat (Ye et al. 2024), in its classic mode."""

from jaxtyping import Float
from torch import Tensor

from spatialavatar.errors import SpatialAvatarError
from spatialavatar.splat.camera import Camera
from spatialavatar.splat.gaussians import WorldGaussians
from spatialavatar.splat.projection import EPS2D, FAR, NEAR


def rasterize(gaussians: WorldGaussians, camera: Camera) -> tuple[Float[Tensor, "B H W C"], Float[Tensor, "B H W"]]:
    """Premultiplied features and alpha. gsplat builds its kernels with nvcc at first use, which takes minutes."""
    try:
        from gsplat import rasterization
    except ImportError as error:
        raise SpatialAvatarError(f"the gsplat backend needs the package gsplat: {error}; pip install gsplat") from error
    g = gaussians
    if g.means.shape[0] == 1:  # one set of Gaussians seen by B cameras
        attributes = (g.means[0], g.quats[0], g.scales[0], g.opacities[0], g.colors[0])
        poses, intrinsics = camera.world_to_camera, camera.intrinsics
    else:  # B sets, each seen by its own camera
        attributes = (g.means, g.quats, g.scales, g.opacities, g.colors)
        poses, intrinsics = camera.world_to_camera[:, None], camera.intrinsics[:, None]
    features, alpha, _ = rasterization(
        *attributes,
        poses,
        intrinsics,
        camera.width,
        camera.height,
        near_plane=NEAR,
        far_plane=FAR,
        eps2d=EPS2D,
        packed=False,
        rasterize_mode="classic",
    )
    channels = g.colors.shape[-1]
    return (
        features.reshape(camera.batch, camera.height, camera.width, channels),
        alpha.reshape(camera.batch, camera.height, camera.width),
    )
