"""The whole way on CUDA: refinement (alone and batched), resume, evaluation, animation; against the CPU."""

from pathlib import Path
from typing import Any

import pytest
import torch

from spatialavatar.avatar import Avatar, AvatarRenderer, read_avatar
from spatialavatar.avatar.animate import driven_frames
from spatialavatar.evaluation.self_reenactment import evaluate
from spatialavatar.losses.photometric import ssim
from spatialavatar.refine import Progress, Refinement, StopRefinement, Subject, refine_clip, template_start
from spatialavatar.splat.gaussians import LocalGaussians
from tests.builders.clips import tiny_clip, tiny_head
from tests.refine.test_loop import FAST, UV, clips, config

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def run_on(device: str, folder: Path, count: int, steps: int = 6) -> tuple[list[float], LocalGaussians]:
    settings = config(f"iterations={steps}", *FAST)
    head = tiny_head().on(device)
    start = template_start(head, UV)
    subjects = [Subject(clip, head, 32, 1e9, torch.device(device)) for clip in clips(folder, count)]
    run = Refinement(subjects, head, start.layout, LocalGaussians.cat([start.gaussians] * count), settings)
    losses: list[float] = []
    run.run(lambda terms: losses.append(float(terms.total[0])))
    return losses, run.gaussians().to("cpu")


def test_first_losses_equal_the_cpu(tmp_path: Path) -> None:
    on_cpu, on_cuda = (run_on(device, tmp_path / device, 1)[0] for device in ("cpu", "cuda"))
    assert on_cuda == pytest.approx(on_cpu, rel=1e-3)  # Adam's first steps amplify rounding of tiny gradients


def test_batch_equals_each_alone(tmp_path: Path) -> None:
    _, together = run_on("cuda", tmp_path / "together", 2)
    _, alone = run_on("cuda", tmp_path / "alone", 1)
    torch.testing.assert_close(together.position[0], alone.position[0], rtol=1e-3, atol=1e-4)
    assert not torch.allclose(together.color[0], together.color[1])


def test_refine_evaluate_and_animate(tmp_path: Path) -> None:
    clip = tiny_clip(tmp_path / "clip", instants=5, width=32, height=32, test_from=4)
    settings = config("iterations=8", *FAST)
    refine_clip(clip, tiny_head(), template_start(tiny_head(), UV), settings, tmp_path / "a", device="cuda")
    avatar = read_avatar(tmp_path / "a")
    reports = [
        evaluate(
            AvatarRenderer(avatar, tiny_head(), d), clip, "test", resolution=32, background=torch.ones(3), lpips=None
        )
        for d in ("cpu", "cuda")
    ]
    assert reports[0]["psnr"] == pytest.approx(reports[1]["psnr"], abs=0.01)
    renderer = AvatarRenderer(avatar, tiny_head(), "cuda")
    frames = clip.split("all")
    assert len(list(driven_frames(renderer, clip.params_at(frames), clip.camera(frames), torch.ones(3)))) == 5
    assert tiny_head().template.device.type == "cpu", "the caller's head stays where it was"


def test_stopped_run_goes_on(tmp_path: Path) -> None:
    clip = tiny_clip(tmp_path / "clip", instants=5, width=32, height=32)
    settings = config("iterations=8", "log_every=4", *FAST)

    def stop(progress: Progress) -> None:
        if progress.iteration == 5:
            raise StopRefinement

    def refine(**options: Any) -> Avatar:
        return refine_clip(
            clip, tiny_head(), template_start(tiny_head(), UV), settings, tmp_path / "a", device="cuda", **options
        )

    with pytest.raises(StopRefinement):
        refine(observe=stop)
    assert refine(resume=True).provenance["metrics"]["iterations"] == 8


def test_ssim_is_not_rounded_to_tf32() -> None:
    random = torch.Generator().manual_seed(0)
    a = torch.rand(1, 64, 64, 3, generator=random)
    b = (a + 0.01 * torch.randn(a.shape, generator=random)).clamp(0, 1)
    torch.testing.assert_close(ssim(a.cuda(), b.cuda()).cpu().double(), ssim(a.double(), b.double()), rtol=0, atol=1e-4)
