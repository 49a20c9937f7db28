"""What a generator costs: parameters, FLOPs and memory by module, measured on made-up portraits.

FLOPs are fvcore's, for one subject with K sources. What training keeps for the backward pass is measured by hooks on
saved tensors while the training step's own forward runs with one sample, of one source and of two. With activations
computed anew, the largest block that is computed at a time comes on top.
"""

import logging
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from spatialavatar.generator.generator import Generator
from spatialavatar.generator.sources import Sources
from spatialavatar.head import HeadModel
from spatialavatar.losses.lpips_weights import CONVOLUTIONS
from spatialavatar.losses.perceptual import Lpips
from spatialavatar.splat.camera import Camera
from spatialavatar.training.batch import Batch, Target
from spatialavatar.training.config import TrainConfig
from spatialavatar.training.step import TrainingModule
from spatialavatar.training.tensor_memory import CASTS, bytes_of, peak_bytes, saved_bytes

MODULES = ("encoder", "dpt", "pool", "unet", "decoder.heads", "decoder.residual")
REST = "warp and posing"
OBJECTIVE = "splatter and losses"
_BLOCK = "block "


@dataclass(frozen=True)
class Part:
    """One module of a generator."""

    name: str
    parameters: int
    trainable: int
    flops: float  # of one subject with K sources
    activations: int  # bytes that one training sample keeps for the backward pass
    output: str  # its sizes


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes while the backward pass begins, when they are most."""

    batch_size: int
    precision: str
    fixed: dict[str, int]  # weights, gradients, moments, anchor
    activations: int  # kept, and the largest block computed anew, at the mean number of sources
    most_activations: int  # of a batch whose samples all have the most sources

    @property
    def total(self) -> int:
        return sum(self.fixed.values()) + self.activations


@dataclass(frozen=True)
class InferenceMemory:
    """Bytes while one subject is reconstructed."""

    weights: int
    working: int  # most at a time beside the weights

    @property
    def total(self) -> int:
        return self.weights + self.working


@dataclass(frozen=True)
class Summary:
    """What a generator costs."""

    parts: list[Part]
    sources: int  # K
    gaussians: int
    uncounted: list[str]  # operations that fvcore has no rule for
    training: TrainingMemory | None
    inference: InferenceMemory


def summarize(generator: Generator, sources: int = 1, config: TrainConfig | None = None) -> Summary:
    """Measure a generator on the CPU; ``config`` adds what its training needs.

    The weights do not matter, the generator may be made with ``pretrained=False``. Its gradients are left alone.
    """
    batch = made_up_batch(generator, [sources], 64)
    inputs = batch.sources, batch.target.params, batch.target.camera
    generator.eval()
    flops, uncounted = _flops(generator, inputs)
    outputs: dict[str, str] = {}
    with _watched(generator, outputs), torch.no_grad():
        working = peak_bytes(lambda: generator(*inputs), [*generator.parameters(), *generator.buffers()])
    per_sample: Counter[str] = Counter()
    training = None
    if config is not None:
        one, further = _activations(generator, config)
        per_sample = Counter({name: one[name] + (sources - 1) * further[name] for name in one})
        anew = _recomputed(generator, config) if config.gradient_checkpointing else []
        training = _training_memory(generator, config, one, further, anew)
    modules = {name: _module(generator, name) for name in MODULES}
    parts = [
        Part(
            name=name,
            parameters=sum(p.numel() for p in module.parameters()),
            trainable=sum(p.numel() for p in module.parameters() if p.requires_grad),
            flops=flops[name],
            activations=per_sample[name],
            output=outputs.get(name, ""),
        )
        for name, module in modules.items()
        if module is not None
    ]
    parts.append(Part(REST, 0, 0, flops[REST], per_sample[REST], f"{generator.layout.count} Gaussians"))
    if config is not None:
        parts.append(Part(OBJECTIVE, 0, 0, 0.0, per_sample[OBJECTIVE], f"{config.resolution} x {config.resolution}"))
    weights = bytes_of([*generator.parameters(), *generator.buffers()])
    memory = InferenceMemory(weights, working)
    return Summary(parts, sources, generator.layout.count, uncounted, training, memory)


def made_up_batch(generator: Generator, counts: Sequence[int], size: int) -> Batch:
    """Noise as portraits of the head at rest, seen from the front; ``counts`` is of sources, ``size`` of targets."""
    head, side = generator.head.on("cpu"), generator.config.encoder.image_size
    b, k = len(counts), max(counts)
    random = torch.Generator().manual_seed(0)
    mask = torch.arange(k) < torch.tensor(counts)[:, None]
    return Batch(
        numbers=torch.arange(b),
        sources=Sources(
            torch.rand(b, k, 3, side, side, generator=random) * mask[..., None, None, None],
            head.neutral(b * k),
            _frontal(head, b * k, side),
            mask,
        ),
        target=Target(
            image=torch.rand(b, size, size, 3, generator=random),
            matte=torch.ones(b, size, size),
            region=torch.ones(b, size, size),
            face_box=torch.tensor([0.3, 0.3, 0.7, 0.7]).mul(size).repeat(b, 1),
            params=head.neutral(b),
            camera=_frontal(head, b, size),
        ),
        background=torch.rand(b, 3, generator=random),
    )


def _activations(generator: Generator, config: TrainConfig) -> tuple[Counter[str], Counter[str]]:
    """Bytes by part that one sample of one source keeps, and what each further source adds."""
    one, two = (_saved_by_part(generator, config, sources) for sources in (1, 2))
    return one, two - one


def _recomputed(generator: Generator, config: TrainConfig) -> list[tuple[int, int]]:
    """Bytes that each block keeps while it is computed anew, of one source and for each further one."""
    plain = config.model_copy(update={"gradient_checkpointing": False})
    one, two = (_saved_by_part(generator, plain, sources, _blocks_watched) for sources in (1, 2))
    return [(one[name], two[name] - one[name]) for name in one if name.startswith(_BLOCK)]


def _saved_by_part(
    generator: Generator,
    config: TrainConfig,
    sources: int,
    watched: Callable[[Generator], AbstractContextManager[Callable[[], str]]] | None = None,
) -> Counter[str]:
    weights = config.loss.model_copy(update={"lambda_sp": 0.0})  # the anchor keeps no activations
    features = _alexnet_features()
    lpips = Lpips(features) if weights.lambda_lp > 0 else None
    module = TrainingModule(generator, config.model_copy(update={"loss": weights}), lpips).train()
    batch = made_up_batch(generator, [sources], config.resolution)
    known = [*generator.parameters(), *generator.buffers(), *features.values()]
    before = generator.unet.recompute
    generator.recompute_activations(config.gradient_checkpointing)
    try:
        with _watched(generator, {}) if watched is None else watched(generator) as scope:
            return saved_bytes(lambda: module(batch).loss, known, scope)
    finally:
        generator.recompute_activations(before)


def _training_memory(
    generator: Generator,
    config: TrainConfig,
    one: Counter[str],
    further: Counter[str],
    anew: list[tuple[int, int]],
) -> TrainingMemory:
    trained = bytes_of(p for p in generator.parameters() if p.requires_grad)
    fixed = {
        "weights": bytes_of([*generator.parameters(), *generator.buffers()]) + one[CASTS],
        "gradients": trained,
        "Adam's moments": 2 * trained,
    }
    if config.loss.lambda_sp > 0:
        fixed["anchor"] = trained
    sample, source = one.total() - one[CASTS], further.total()
    most = config.sampler.max_sources
    mean = (1 + most) / 2  # K is uniform

    def activations(count: float) -> int:
        largest = max((first + (count - 1) * next_ for first, next_ in anew), default=0)
        return round(config.batch_size * (sample + (count - 1) * source + largest))

    return TrainingMemory(
        batch_size=config.batch_size,
        precision=config.precision,
        fixed=fixed,
        activations=activations(mean),
        most_activations=activations(most),
    )


def _flops(generator: Generator, inputs: tuple[Any, ...]) -> tuple[Counter[str], list[str]]:
    """fvcore's count by part, and the operations that it has no rule for."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # importing it calls torch.jit.script
        from fvcore.nn import FlopCountAnalysis
    traced = _Traced(generator, *inputs).eval()
    for noisy in ("fvcore", "fvcore.nn.jit_analysis"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the tracer: branches on sizes and masks, which do not change here
        analysis = FlopCountAnalysis(traced, inputs[0].images)
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
        analysis.set_op_handle("aten::scaled_dot_product_attention", _attention_flops)
        by_module = analysis.by_module()
        flops = Counter({name: by_module[f"generator.{name}"] for name in MODULES})
        flops[REST] = by_module[""] - flops.total()
        return flops, sorted(name.removeprefix("aten::") for name in analysis.unsupported_ops())


class _Traced(nn.Module):
    """The generator with pictures as its one input, as fvcore's tracer wants it."""

    def __init__(self, generator: Generator, sources: Sources, params: Any, camera: Camera) -> None:
        super().__init__()
        self.generator = generator
        self._rest = sources, params, camera

    def forward(self, images: Tensor) -> Tensor:
        sources, params, camera = self._rest
        decoded = self.generator(replace(sources, images=images), params, camera)
        return torch.cat([t.flatten() for t in decoded.gaussians.tensors().values()])


def _attention_flops(inputs: list[Any], outputs: list[Any]) -> float:
    """Queries with keys, then weights with values."""
    from fvcore.nn.jit_handles import get_shape

    (*batch, length, channels), (*_, keys, width) = get_shape(inputs[0]), get_shape(inputs[2])
    return float(math.prod(batch) * length * keys * (channels + width))


@contextmanager
def _watched(generator: Generator, outputs: dict[str, str]) -> Iterator[Callable[[], str]]:
    """Gives a function that names the part at work, and writes the sizes that parts give into ``outputs``."""
    stack = [OBJECTIVE]
    handles = []
    for name, module in [("", generator), *generator.named_modules(remove_duplicate=False)]:
        part = next((part for part in MODULES if name == part or name.startswith(f"{part}.")), REST)

        def leave(module: nn.Module, inputs: Any, out: Any, name: str = name, part: str = part) -> None:
            stack.pop()
            if name == part:
                outputs[part] = _sizes(out)
            elif name.rpartition(".")[0] == part == "decoder.heads":
                channels = outputs.get(part, "").removesuffix(" per texel")
                outputs[part] = f"{channels} + {out.shape[-1]}".removeprefix(" + ") + " per texel"

        handles.append(module.register_forward_pre_hook(lambda module, inputs, part=part: stack.append(part)))
        handles.append(module.register_forward_hook(leave))
    try:
        yield lambda: stack[-1]
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _blocks_watched(generator: Generator) -> Iterator[Callable[[], str]]:
    """Gives a function that names the block at work, of those that can be computed anew."""
    inside = [REST]
    handles = []

    def leave(module: nn.Module, inputs: Any, out: Any) -> None:
        inside.pop()

    for number, block in enumerate(generator.recomputed_blocks()):
        name = f"{_BLOCK}{number}"
        handles.append(block.register_forward_pre_hook(lambda module, inputs, name=name: inside.append(name)))
        handles.append(block.register_forward_hook(leave))
    try:
        yield lambda: inside[-1]
    finally:
        for handle in handles:
            handle.remove()


def _sizes(out: Any) -> str:
    """Sizes of the tensors in a module's output, the first axis left out."""
    if isinstance(out, Tensor):
        return " x ".join(str(side) for side in out.shape[1:])
    if is_dataclass(out):
        out = [getattr(out, field.name) for field in fields(out)]
    sizes = Counter(_sizes(one) for one in (out.values() if isinstance(out, dict) else out))
    return " and ".join(size if count == 1 else f"{count} x ({size})" for size, count in sizes.items())


def _module(generator: Generator, name: str) -> nn.Module | None:
    found: Any = generator
    for step in name.split("."):
        found = getattr(found, step)
    return found if isinstance(found, nn.Module) else None


def _frontal(head: HeadModel, count: int, size: int) -> Camera:
    """Square cameras before the face, the head in the middle half of the picture."""
    low, high = head.template.min(0).values, head.template.max(0).values
    reach = float((high - low).max())
    world_to_camera = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0]))
    world_to_camera[:3, 3] = -world_to_camera[:3, :3] @ ((low + high) / 2)
    world_to_camera[2, 3] += 4 * reach
    focal = 2.0 * size
    intrinsics = torch.tensor([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]])
    return Camera(world_to_camera.repeat(count, 1, 1), intrinsics.repeat(count, 1, 1), size, size)


def _alexnet_features() -> dict[str, Tensor]:
    """Weights for LPIPS of AlexNet's shapes: what it keeps does not depend on their values."""
    features = {}
    for number, shape in CONVOLUTIONS.items():
        features[f"features.{number}.weight"] = torch.zeros(shape)
        features[f"features.{number}.bias"] = torch.zeros(shape[0])
    return features
