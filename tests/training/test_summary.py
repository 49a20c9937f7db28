"""What a generator costs: counts against closed forms, and nothing that is left behind."""

import pytest
import torch
from torch import nn

from spatialavatar.training.config import DataConfig, SamplerConfig, TrainConfig
from spatialavatar.training.summary import MODULES, OBJECTIVE, REST, made_up_batch, summarize
from spatialavatar.training.tensor_memory import CASTS, peak_bytes, saved_bytes
from tests.builders.clips import tiny_head
from tests.builders.generators import tiny_generator, tiny_generator_config

IMAGE, PATCH, WIDTH, DEPTH = 32, 16, 32, 4  # of the tiny encoder


def training(**changes: object) -> TrainConfig:
    values = {"data": DataConfig(clips=("x",)), "resolution": 32, "batch_size": 5, "generator": tiny_generator_config()}
    return TrainConfig.model_validate({**values, **changes})


def test_parameters_and_flops_by_module() -> None:
    generator = tiny_generator(tiny_head())
    found = summarize(generator)
    parts = {part.name: part for part in found.parts}
    assert list(parts) == [*MODULES, REST]
    assert sum(part.parameters for part in found.parts) == sum(p.numel() for p in generator.parameters())
    assert parts["encoder"].trainable == 0 < parts["encoder"].parameters
    assert parts["dpt"].trainable == parts["dpt"].parameters > 0
    # of a pre-norm transformer: patches, four linear layers a block, scores and values of all heads
    patches = (IMAGE // PATCH) ** 2
    tokens = patches + 1 + 4  # CLS, registers
    block = tokens * (4 * WIDTH**2 + 2 * WIDTH * 4 * WIDTH) + 2 * tokens**2 * WIDTH
    expected = patches * 3 * PATCH**2 * WIDTH + DEPTH * block
    assert parts["encoder"].flops == pytest.approx(expected, rel=0.05)  # and its norms
    heads = generator.decoder.heads.values()
    texels = generator.layout.count
    per_texel = sum(layer.weight.numel() for head in heads for layer in (head.features, head.hidden, head.output))
    per_view = sum(head.view.weight.numel() for head in heads)
    assert parts["decoder.heads"].flops == texels * per_texel + per_view
    assert parts["unet"].output == "5 x 32 x 32"
    assert found.training is None and found.gaussians == texels
    assert "silu" in found.uncounted or "leaky_relu" in found.uncounted


def test_each_source_costs_an_encoder_and_each_person_one_unet() -> None:
    generator = tiny_generator(tiny_head())
    one, three = ({part.name: part.flops for part in summarize(generator, sources=k).parts} for k in (1, 3))
    assert three["encoder"] == 3 * one["encoder"] and three["dpt"] == 3 * one["dpt"]
    assert three["unet"] == one["unet"] and three["decoder.heads"] == one["decoder.heads"]


def test_training_memory_adds_up() -> None:
    generator = tiny_generator(tiny_head())
    trained = 4 * sum(p.numel() for p in generator.parameters() if p.requires_grad)
    loss = {"lambda_sp": 1e-3}
    memory = summarize(generator, config=training(loss=loss)).training
    assert memory is not None
    assert memory.fixed["gradients"] == memory.fixed["anchor"] == trained
    assert memory.fixed["Adam's moments"] == 2 * trained
    double = summarize(generator, config=training(loss=loss, batch_size=10)).training
    assert double is not None
    assert double.activations == pytest.approx(2 * memory.activations, abs=1) and double.fixed == memory.fixed
    assert memory.most_activations > memory.activations
    assert memory.total == sum(memory.fixed.values()) + memory.activations
    assert all(p.grad is None for p in generator.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in generator.modules())


def test_expected_activations_are_those_of_a_real_batch() -> None:
    """Of two samples with two and three sources, 2.5 on average as K uniform on 1 .. 4."""
    from spatialavatar.training.step import TrainingModule

    generator = tiny_generator(tiny_head())
    config = training(batch_size=2, loss={"lambda_lp": 0.0})
    memory = summarize(generator, config=config).training
    module = TrainingModule(generator, config)
    batch = made_up_batch(generator, [2, 3], 32)
    known = [*generator.parameters(), *generator.buffers()]
    real = saved_bytes(lambda: module(batch).loss, known, lambda: "").total()
    assert memory is not None and memory.activations == pytest.approx(real, rel=0.03)


def test_checkpointing_and_bf16_keep_less() -> None:
    generator = tiny_generator(tiny_head())

    def kept(**changes: object) -> dict[str, int]:
        return {part.name: part.activations for part in summarize(generator, config=training(**changes)).parts}

    plain, checkpointed, half = kept(), kept(gradient_checkpointing=True), kept(precision="bf16")
    assert all(checkpointed[part] < 0.6 * plain[part] for part in ("unet", "dpt"))
    assert half["dpt"] < 0.7 * plain["dpt"]
    assert plain["encoder"] == 0  # frozen
    assert plain[OBJECTIVE] > 0
    assert not generator.unet.recompute


def test_the_largest_block_computed_anew_counts() -> None:
    """It is alive beside all that was kept when the backward pass comes to it."""
    generator = tiny_generator(tiny_head())
    config = training(gradient_checkpointing=True, loss={"lambda_lp": 0.0})
    found = summarize(generator, config=config).training
    (kept,) = (sum(part.activations for part in s.parts) for s in [summarize(generator, sources=1, config=config)])
    assert found is not None
    one = summarize(
        generator, config=config.model_copy(update={"batch_size": 1, "sampler": SamplerConfig(max_sources=1)})
    )
    assert one.training is not None
    anew = one.training.activations - kept
    levels = 8 * 32 * 32 * 4  # bytes of the finest level's maps: its block keeps several of them
    assert 3 * levels < anew < kept
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in generator.modules())


def test_saved_bytes_count_each_storage_once() -> None:
    layer = nn.Linear(4, 4, bias=False)
    x = torch.randn(8, 4, requires_grad=True)

    def forward() -> torch.Tensor:
        y = layer(x)  # keeps x and the weights
        return (y.exp() + y.sin() + y.T.cos().T).sum()  # keeps exp's result, and y once

    assert saved_bytes(forward, layer.parameters(), lambda: "here") == {"here": 3 * 8 * 4 * 4}


def test_saved_bytes_tell_casts_of_weights_apart() -> None:
    layer = nn.Linear(4, 6, bias=False)
    x = torch.randn(8, 4, requires_grad=True)

    def forward() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return layer(x).sum()

    assert saved_bytes(forward, layer.parameters(), lambda: "here") == {CASTS: 6 * 4 * 2, "here": 8 * 4 * 2}


def test_peak_is_of_what_lives_at_a_time() -> None:
    x = torch.ones(1000)

    def chain() -> torch.Tensor:
        y = x + 1
        for _ in range(5):
            y = y * 2  # the old one and the new one
        return y.view(10, 100)[0]

    assert peak_bytes(chain, [x]) == 2 * 4000
    assert peak_bytes(lambda: x.view(10, 100), [x]) == 0
