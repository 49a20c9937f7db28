"""The CPU kernels in threads, forked processes, and on machines without AVX-512."""

import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from spatialavatar.splat.cpu import runtime
from spatialavatar.splat.cpu.runtime import aligned_empty, kernel, kernel_guard, scratch
from spatialavatar.splat.rasterize import rasterize

PICTURE = """
    import torch
    from spatialavatar.splat.camera import Camera
    from spatialavatar.splat.gaussians import WorldGaussians
    from spatialavatar.splat.rasterize import rasterize

    def gaussians(dtype=torch.float32):
        g = torch.Generator().manual_seed(0)
        values = (torch.rand(1, 50, 3, generator=g) - 0.5, torch.randn(1, 50, 4, generator=g),
                  torch.rand(1, 50, 3, generator=g) * 0.1, torch.rand(1, 50, 3, generator=g),
                  torch.rand(1, 50, generator=g))
        return WorldGaussians(*[v.to(dtype).requires_grad_() for v in values])

    pose = torch.eye(4)[None]
    pose[:, 2, 3] = 1.5
    camera = Camera(pose, torch.tensor([[[40.0, 0, 16], [0, 40.0, 12], [0, 0, 1]]]), 32, 24)
"""


def run_python(script, timeout=300, **environment):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PICTURE) + textwrap.dedent(script)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def test_threads_get_right_pictures(scenes):
    camera = scenes.camera(dtype=torch.float32)
    everywhere = torch.ones(1, camera.height, camera.width)
    sets = [scenes.as_leaves(scenes.gaussians(count=100 + 20 * k, seed=k), torch.float32) for k in range(4)]
    expected = [scenes.gradients_of(rasterize(g, camera), g, everywhere) for g in sets]
    wrong, finished = [], []

    def work(k):
        for _ in range(5):
            got = scenes.gradients_of(rasterize(sets[k], camera), sets[k], everywhere)
            if not all(torch.equal(a, b) for a, b in zip(got, expected[k])):
                wrong.append(k)
        finished.append(k)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert sorted(finished) == [0, 1, 2, 3] and not wrong


@pytest.mark.parametrize(
    "before", ["rasterize(gaussians(), camera)", "torch.rand(2000, 2000) @ torch.rand(2000, 2000)"]
)
def test_a_forked_child_gets_a_clear_error(before):
    """Whether the parent has run kernels before the fork or not; and the parent goes on working."""
    result = run_python(f"""
        import os
        from spatialavatar.errors import SpatialAvatarError
        {before}
        child = os.fork()
        if child == 0:
            try:
                rasterize(gaussians(), camera)
            except SpatialAvatarError as error:
                print(error, flush=True)
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        print("parent", rasterize(gaussians(), camera).alpha.shape)
    """)
    assert result.returncode == 0, result.stderr
    first, second = result.stdout.splitlines()
    assert "cannot run in a forked process: start workers with the 'spawn' method" in first
    assert second == "parent torch.Size([1, 24, 32])"


@pytest.mark.slow
def test_machines_without_avx512(tmp_path):
    """The same kernels compiled for the oldest x86-64 (or the generic CPU of another architecture)."""
    result = run_python(
        """
        import numba
        assert numba.config.CPU_NAME == "generic"
        ours, reference = gaussians(), gaussians(torch.float64)
        pictures = rasterize(ours, camera), rasterize(reference, camera.to(torch.float64), backend="reference")
        assert (pictures[0].features - pictures[1].features).abs().max() < 1e-4
        for p in pictures:
            (p.features.square().sum() + p.alpha.sum()).backward()
        for name in ("means", "quats", "scales", "colors", "opacities"):
            a, b = getattr(ours, name).grad, getattr(reference, name).grad
            assert (a - b).norm() < 1e-3 * b.norm(), name
        """,
        NUMBA_CPU_NAME="generic",
        NUMBA_CPU_FEATURES="",
        NUMBA_CACHE_DIR=str(tmp_path),
    )
    assert result.returncode == 0, result.stderr


def test_guard_nests_and_survives_errors():
    with kernel_guard(), kernel_guard():
        pass
    with pytest.raises(ValueError, match="inside"), kernel_guard():
        raise ValueError("inside")
    entered = []

    def enter():
        with kernel_guard():
            entered.append(True)

    other = threading.Thread(target=enter, daemon=True)
    other.start()
    other.join(timeout=10)
    assert entered


def test_buffers_are_aligned():
    with kernel_guard():
        for array in (
            aligned_empty((3, 5)),
            aligned_empty(7, np.uint8),
            scratch("test", (11, 3)),
            scratch("test", (40, 3)),
        ):
            assert array.ctypes.data % 64 == 0 and array.flags.c_contiguous
        assert scratch("test", (4, 4)).ctypes.data == scratch("test", (4, 4)).ctypes.data


def test_cache_notices_other_files(tmp_path, monkeypatch):
    """Kernels are stamped with the contents of all sources, where numba looks at the time of one file."""
    package = tmp_path / "splat" / "cpu"
    package.mkdir(parents=True)
    for file in (package / "runtime.py", package / "simd.py", tmp_path / "splat" / "camera.py", tmp_path / "own.py"):
        file.write_text("a = 1")
    monkeypatch.setattr(runtime, "__file__", str(package / "runtime.py"))
    digest = runtime._source_digest.__wrapped__

    def stamps():
        return digest(tmp_path / "own.py")

    before = stamps()
    assert stamps() == before
    seen = {before}
    for file in (package / "simd.py", tmp_path / "splat" / "camera.py", tmp_path / "own.py"):
        file.write_text("a = 2")
        seen.add(stamps())
    assert len(seen) == 4
    monkeypatch.undo()

    @kernel()
    def double(x):
        return 2 * x

    assert double(4) == 8
    assert double._cache._cache_file._source_stamp == runtime._source_digest(Path(__file__))


def test_copies_of_the_same_sources_share_what_is_compiled(tmp_path):
    """As a submitted job's copy of the repository does; a copy that differs compiles its own."""
    source = "from spatialavatar.splat.cpu.runtime import kernel\n\n@kernel()\ndef double(x):\n    return 2 * x\n"
    loads = []
    for name, text in (("a", source), ("b", source), ("c", source + "# another\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "own.py").write_text(text)
        done = run_python(
            """
            import own
            assert own.double(4) == 8
            print(sum(own.double.stats.cache_hits.values()))
            """,
            PYTHONPATH=f"{tmp_path / name}",
            NUMBA_CACHE_DIR=str(tmp_path / "cache"),
        )
        assert done.returncode == 0, done.stderr
        loads.append(done.stdout.strip())
    assert loads == ["0", "1", "0"]


@pytest.mark.parametrize("surroundings", ["no home", "no place", "no compiler"])
def test_kernels_run_where_nothing_can_be_kept(tmp_path, surroundings):
    environment = {
        "no home": {"HOME": "", "XDG_CACHE_HOME": str(tmp_path)},
        "no place": {"NUMBA_CACHE_DIR": "/proc/nowhere"},
        "no compiler": {"NUMBA_DISABLE_JIT": "1"},
    }[surroundings]
    done = run_python(
        """
        from spatialavatar.splat.cpu.runtime import kernel
        @kernel()
        def double(x):
            return 2 * x
        print(double(4))
        """,
        **environment,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["8"]


def test_the_first_kernel_leaves_torchs_threads_alone():
    """In a process of its own, for numba starts its threads once."""
    done = run_python(
        """
        before = torch.get_num_threads()
        rasterize(gaussians(), camera)
        print(before, torch.get_num_threads())
        """,
        OMP_NUM_THREADS="1",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["1", "1"]
