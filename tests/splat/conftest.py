"""Random scenes for the splatter's tests, and where on them backends of different precision can be compared."""

import pytest
import torch

from spatialavatar.splat.camera import Camera
from spatialavatar.splat.gaussians import WorldGaussians
from spatialavatar.splat.projection import ALPHA_MIN, project

ATTRIBUTES = ("means", "quats", "scales", "colors", "opacities")


def make_camera(batch=1, width=37, height=29, seed=0, dtype=torch.float64):
    """Cameras one metre in front of the origin, slightly turned, principal point off centre."""
    generator = torch.Generator().manual_seed(seed)
    turn = 0.2 * torch.randn(batch, 3, generator=generator, dtype=torch.float64)
    skew = torch.zeros(batch, 3, 3, dtype=torch.float64)
    skew[:, 0, 1], skew[:, 0, 2], skew[:, 1, 2] = -turn[:, 2], turn[:, 1], -turn[:, 0]
    skew = skew - skew.mT
    pose = torch.eye(4, dtype=torch.float64).repeat(batch, 1, 1)
    pose[:, :3, :3] = torch.linalg.matrix_exp(skew)
    pose[:, 2, 3] = 1
    k = torch.tensor([[1.4 * width, 0, 0.48 * width], [0, 1.3 * width, 0.53 * height], [0, 0, 1]], dtype=torch.float64)
    return Camera(pose.to(dtype), k.repeat(batch, 1, 1).to(dtype), width, height)


def make_gaussians(batch=1, count=80, channels=3, seed=0, dtype=torch.float64, odd_ones=True):
    """A cloud around the origin; with ``odd_ones`` also behind the camera, off screen, sub-pixel, huge, transparent."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    means = (uniform(batch, count, 3) - 0.5) * torch.tensor([0.7, 0.6, 0.5], dtype=torch.float64)
    quats = torch.randn(batch, count, 4, generator=generator, dtype=torch.float64)
    scales = 0.004 + 0.04 * uniform(batch, count, 3)
    colors = uniform(batch, count, channels)
    opacities = 0.05 + 0.93 * uniform(batch, count)
    if odd_ones:
        means[:, 0] = torch.tensor([0.0, 0.0, -3.0])  # behind the camera
        means[:, 1] = torch.tensor([0.0, 0.0, -1.0])  # in its centre
        means[:, 2] = torch.tensor([5.0, 0.1, 0.2])  # off screen
        means[:, 3] = torch.tensor([0.45, 0.0, 0.0])  # across the border, beyond the Jacobian's bound
        scales[:, 3] = 0.15
        scales[:, 4] = 1e-5  # far below a pixel
        scales[:, 5] = 0.5  # the whole picture
        scales[:, 6] = torch.tensor([0.2, 0.02, 1e-6])  # a flat sheet
        opacities[:, 7] = 0.0
        opacities[:, 8] = 0.003  # below 1/255
        opacities[:, 9] = 1.0
        quats[:, 10] *= 100
        means[:, 11, 2] = means[:, 12, 2]
    values = (means, quats, scales, colors, opacities)
    return WorldGaussians(*[v.to(dtype).requires_grad_() for v in values])


def safe_pixels(gaussians, camera, margin=2e-4):
    """Where no Gaussian is within a relative ``margin`` of a threshold: alpha 1/255, cap 0.999, transmittance 1e-4."""
    with torch.no_grad():
        gaussians, camera = gaussians.to(torch.float64), camera.to(torch.float64)
        projected = project(gaussians, camera)
        ys = torch.arange(camera.height, dtype=torch.float64) + 0.5
        xs = torch.arange(camera.width, dtype=torch.float64) + 0.5
        pixels = torch.stack([xs.expand(len(ys), -1), ys[:, None].expand(-1, len(xs))], -1)
        safe = []
        for b in range(camera.batch):
            keep = projected.visible[b].nonzero()[:, 0]
            keep = keep[projected.depths[b, keep].argsort(stable=True)]
            dx, dy = (projected.means2d[b, keep] - pixels[..., None, :]).unbind(-1)
            a, bb, c = projected.conics[b, keep].unbind(-1)
            raw = gaussians.opacities[min(b, gaussians.opacities.shape[0] - 1), keep] * torch.exp(
                -0.5 * (a * dx * dx + c * dy * dy) - bb * dx * dy
            )
            alpha = raw.clamp(max=0.999).where(raw >= ALPHA_MIN, torch.zeros_like(raw))
            after = torch.cumprod(1 - alpha, -1)
            near = ((raw / ALPHA_MIN - 1).abs() < margin) | ((raw / 0.999 - 1).abs() < margin)
            near |= (after / 1e-4 - 1).abs() < margin
            safe.append(~near.any(-1))
    return torch.stack(safe)


def gradients_of(rendering, gaussians, mask, seed=0):
    """Gradients of a random linear functional of features and alpha on the masked pixels."""
    generator = torch.Generator().manual_seed(seed)
    shape = rendering.features.shape
    v_features = torch.randn(shape, generator=generator, dtype=torch.float64) * mask[..., None]
    v_alpha = torch.randn(shape[:-1], generator=generator, dtype=torch.float64) * mask
    dtype = rendering.features.dtype
    loss = (rendering.features * v_features.to(dtype)).sum() + (rendering.alpha * v_alpha.to(dtype)).sum()
    return torch.autograd.grad(loss, [getattr(gaussians, name) for name in ATTRIBUTES])


def as_leaves(gaussians, dtype):
    return WorldGaussians(*[getattr(gaussians, n).detach().to(dtype).requires_grad_() for n in ATTRIBUTES])


class Scenes:
    """The functions above, for tests to take as one fixture."""

    attributes = ATTRIBUTES
    camera = staticmethod(make_camera)
    gaussians = staticmethod(make_gaussians)
    safe_pixels = staticmethod(safe_pixels)
    gradients_of = staticmethod(gradients_of)
    as_leaves = staticmethod(as_leaves)


@pytest.fixture(scope="session")
def scenes():
    return Scenes
