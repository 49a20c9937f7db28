"""``spatialavatar doctor``: what this machine has, and what to do about what is missing."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from typing import Annotated, Literal, NamedTuple

import typer

Verdict = Literal["ok", "note", "missing"]


class Finding(NamedTuple):
    subject: str
    verdict: Verdict  # "note": works without it, slower or with less
    found: str
    advice: str = ""


def doctor(json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False) -> None:
    """Say what this machine has and what it lacks.

    Looks at torch, CUDA, gsplat and its kernels, the CPU splatter, ffmpeg and LPIPS weights. Exits with 1 when
    something that every run needs is missing.

    \b
    Examples:
      spatialavatar doctor
      spatialavatar doctor --json
    """
    findings = [_python(), _torch(), _cuda(), _gsplat(), _cpu_splatter(), _ffmpeg(), _lpips()]
    if json:
        from json import dumps

        print(dumps([f._asdict() for f in findings], indent=2))
    else:
        for f in findings:
            print(f"{f.verdict:8} {f.subject:14} {f.found}")
            if f.advice:
                print(f"{'':23} -> {f.advice}")
    if any(f.verdict == "missing" for f in findings):
        raise typer.Exit(1)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _python() -> Finding:
    from spatialavatar.processors import usable_cpus

    return Finding("python", "ok", f"{platform.python_version()} on {platform.machine()}, {usable_cpus()} cores")


def _torch() -> Finding:
    version = _version("torch")
    if version is None:
        return Finding("torch", "missing", "not installed", "pip install torch")
    import torch

    return Finding("torch", "ok", f"{version}, {torch.get_num_threads()} threads")


def _cuda() -> Finding:
    import torch

    if torch.cuda.is_available():
        p = torch.cuda.get_device_properties(0)
        return Finding("CUDA device", "ok", f"{p.name}, {p.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}")
    if torch.version.cuda is None:
        return Finding(
            "CUDA device",
            "note",
            "this torch is built for the CPU only",
            "with an NVIDIA card: reinstall torch from PyPI",
        )
    return Finding("CUDA device", "note", "none; everything runs on the CPU", "with an NVIDIA card: check the driver")


def _gsplat() -> Finding:
    version = _version("gsplat")
    if version is None:
        return Finding("gsplat", "note", "not installed; needed on CUDA only", "pip install gsplat")
    import torch

    if not torch.cuda.is_available():
        return Finding("gsplat", "ok", f"{version}; its kernels are needed on CUDA only")
    from torch.utils.cpp_extension import _get_build_directory

    built = os.path.exists(os.path.join(_get_build_directory("gsplat_cuda", False), "gsplat_cuda.so"))
    precompiled = importlib.util.find_spec("gsplat.csrc") is not None
    if built or precompiled:
        return Finding("gsplat", "ok", f"{version}, kernels built")
    if shutil.which("nvcc") is None and "CUDA_HOME" not in os.environ:
        return Finding(
            "gsplat",
            "missing",
            f"{version}, kernels not built and no nvcc",
            "install the CUDA toolkit and set CUDA_HOME",
        )
    return Finding(
        "gsplat",
        "note",
        f"{version}, kernels not built yet",
        "the first run builds them (minutes); CUDA_HOME must be the toolkit's own folder",
    )


def _cpu_splatter() -> Finding:
    import llvmlite.binding as llvm
    import numba

    features = llvm.get_host_cpu_features()
    vectors = next((name for name in ("avx512f", "avx2", "neon") if features.get(name)), "no wide vectors")
    policy = os.environ.get("OMP_WAIT_POLICY", "unset")
    found = f"numba {numba.__version__}, {numba.config.NUMBA_NUM_THREADS} threads, {vectors}"  # type: ignore[attr-defined]
    if policy.lower() != "passive":
        advice = "set OMP_WAIT_POLICY=passive: torch's and numba's threads fight for the cores otherwise"
        return Finding("CPU splatter", "note", f"{found}, OMP_WAIT_POLICY {policy}", advice)
    return Finding("CPU splatter", "ok", found)


def _ffmpeg() -> Finding:
    try:
        import imageio_ffmpeg

        return Finding("ffmpeg", "ok", f"{imageio_ffmpeg.get_ffmpeg_version()}, used for videos")
    except (ImportError, RuntimeError) as e:
        return Finding("ffmpeg", "missing", str(e).splitlines()[0], "pip install 'imageio[ffmpeg]'")


def _lpips() -> Finding:
    from spatialavatar.losses.lpips_weights import WEIGHTS_VARIABLE, find_local_features

    try:
        where = find_local_features()
    except Exception as e:
        return Finding("LPIPS weights", "missing", " ".join(str(e).split()))
    if where is None:
        return Finding(
            "LPIPS weights",
            "note",
            "none here; downloaded when needed, else LPIPS is reported as null",
            f"to work offline set {WEIGHTS_VARIABLE} to AlexNet features (torchvision's .pth or safetensors)",
        )
    return Finding("LPIPS weights", "ok", str(where))
