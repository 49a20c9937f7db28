"""What a training run can be told (method.md section 3); configs/phase1.yaml and phase2.yaml explain each value."""

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from spatialavatar import files
from spatialavatar.config import Config
from spatialavatar.generator.config import GeneratorConfig


class SyntheticData(Config):
    """People made up from the built-in head, drawn by number: no disk is needed."""

    identities: int = Field(256, ge=1)
    first_identity: int = Field(0, ge=0)  # numbers first_identity .. first_identity + identities - 1
    instants: int = Field(16, ge=2)  # of each capture
    cameras: int = Field(1, ge=1)  # 1: a monocular clip with a moving head; more: a synchronized take on a frontal arc
    texture_size: int = Field(256, ge=16)  # of the painted surface


class ShardData(Config):
    """A data set that the ingest wrote, or the people of one part of it."""

    url: str  # its folder; that of held_out is data's unless given, so is its share
    part: Literal["all", "train", "held_out"] = "all"
    held_out_share: float = Field(0.02, gt=0, lt=1)  # of the people; always the same ones, chosen by their names


class DataConfig(Config):
    """Where training samples come from: exactly one of synthetic, clips and shards."""

    synthetic: SyntheticData | None = None
    clips: tuple[str, ...] = ()  # folders of tracked clips, or patterns such as data/*
    shards: ShardData | None = None  # or its url alone
    memory_gb: float = Field(2.0, ge=0)  # decoded frames kept in memory, by all workers together
    workers: int = Field(0, ge=0)  # processes that prepare batches; 0: a thread, on Ray all CPUs that are left

    @field_validator("shards", mode="before")
    @classmethod
    def _from_url(cls, value: Any) -> Any:
        return {"url": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_source(self) -> "DataConfig":
        if sum([self.synthetic is not None, bool(self.clips), self.shards is not None]) != 1:
            raise ValueError("give one of data.synthetic, data.clips and data.shards, and make the others null")
        return self


class AugmentConfig(Config):
    """Random changes to what is read; all off by default."""

    color: float = Field(0.0, ge=0, le=1)  # gain and gamma of each channel are exp(+- this), one draw for a sample
    framing: float = Field(0.0, ge=0, le=0.5)  # each source zoomed by exp(+- this), moved by up to this share of half


class SamplerConfig(Config):
    """How frames are drawn."""

    max_sources: int = Field(4, ge=1, le=16)  # K is uniform on 1 .. this
    temperature_start: float = Field(2.0, gt=0)  # of the softmax over difficulty that draws source[0]
    temperature_end: float = Field(0.5, gt=0)
    temperature_share: float = Field(0.25, ge=0, le=1)  # of the training over which it falls linearly
    cross_time: float = Field(0.25, ge=0, le=1)  # Phase 2: share of samples across time, the rest across cameras
    draws_per_clip: int = Field(1, ge=1)  # samples from a clip each time that it is read, in as many steps in a row


class LossWeights(Config):
    """Weights of the terms, by the names of the paper; 0 leaves a term out."""

    lambda_1: float = Field(1.0, ge=0)
    lambda_ms: float = Field(1.0, ge=0)
    lambda_lp: float = Field(1.0, ge=0)
    lambda_box: float = Field(1.0, ge=0)
    lambda_ps: float = Field(1e-2, ge=0)
    lambda_ss: float = Field(1e-2, ge=0)
    lambda_jac: float = Field(1e-1, ge=0)
    lambda_delta: float = Field(0.0, ge=0)  # 1e-2 in Phase 2
    lambda_sp: float = Field(0.0, ge=0)  # 1e-3 in Phase 2: the anchor at the Phase-1 weights
    face_box_dilation: float = Field(1.65, gt=0)


class OptimizerConfig(Config):
    """The optimizer and its rates."""

    kind: Literal["adam", "adamw"] = "adam"
    learning_rate: float = Field(2.5e-4, gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(0.0, ge=0)
    clip_norm: float = Field(5.0, gt=0)  # of the gradient
    lr_decay: float = Field(1.0, gt=0, le=1)  # gamma_LR: factor per layer of the encoder, counted from its output


class ScheduleConfig(Config):
    """The learning rate over the steps: warm-up, then decay."""

    kind: Literal["linear", "cosine", "constant"] = "linear"
    warmup_steps: int = Field(0, ge=0)  # linear from zero
    decay_steps: int | None = Field(None, ge=1)  # until ``end`` is reached, warm-up included; None: all steps
    end: float = Field(0.1, ge=0, le=1)  # share of the learning rate at the end of the decay


class DistributedConfig(Config):
    """How ray_jobs.train spreads a training over a cluster; ``spatialavatar train`` takes no notice of it."""

    workers: int = Field(1, ge=1)  # training processes, each with its share of every batch; one for each GPU
    zero_stage: Literal[0, 1, 2] = 0  # DeepSpeed: what each keeps a part of. 1: optimizer state, 2: gradients, too
    use_gpu: bool | None = None  # None: where the cluster has GPUs
    cpus_per_worker: float | None = Field(None, gt=0)  # None: 1 with a GPU, else half of the worker's share of CPUs
    max_failures: int = Field(3, ge=0)  # restarts in a row without a new checkpoint between them
    wait_seconds: float = Field(30.0, ge=0)  # for machines that are not there yet; longer where a cluster grows


class TrainConfig(Config):
    """Everything that a training can be told."""

    phase: Literal[1, 2] = 1  # 1: monocular-temporal; 2: multi-view-spatial
    phase1_checkpoint: str | None = None  # Phase 2: a Phase-1 run or checkpoint to go on from
    generator: GeneratorConfig = GeneratorConfig()
    head: str | None = None  # head file; None: the built-in one
    data: DataConfig
    held_out: DataConfig | None = None  # subjects kept for the sample sheets and the metric beside them; None: data's
    held_out_samples: int = Field(16, ge=1)  # drawn from them, always the same ones
    sampler: SamplerConfig = SamplerConfig()
    augment: AugmentConfig = AugmentConfig()
    loss: LossWeights = LossWeights()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    steps: int = Field(200_000, ge=1)
    batch_size: int = Field(48, ge=1)  # of all workers together
    resolution: int = Field(512, ge=32)  # pixels of the target's longer side
    precision: Literal["fp32", "bf16"] = "fp32"
    tf32: bool = False  # CUDA: ten-bit mantissas in the float32 convolutions and matrix products
    gradient_checkpointing: bool = False
    compile: bool = False  # torch.compile for encoder and StyleUNet (CUDA)
    seed: int = Field(0, ge=0)
    log_every: int = Field(50, ge=1)  # steps
    sheet_every: int = Field(1000, ge=1)  # steps between sample sheets
    checkpoint_every: int = Field(1000, ge=1)  # steps
    keep_checkpoints: int = Field(3, ge=1)  # newest ones kept
    distributed: DistributedConfig = DistributedConfig()

    @model_validator(mode="before")
    @classmethod
    def _held_out_of_the_same_shards(cls, values: Any) -> Any:
        """What held_out.shards leaves open is as in data.shards."""
        try:
            data, held_out = (values[name]["shards"] for name in ("data", "held_out"))
        except (KeyError, TypeError):
            return values
        if isinstance(data, str):
            data = {"url": data}
        if not (isinstance(data, dict) and isinstance(held_out, dict)):
            return values
        same = {name: data[name] for name in ("url", "held_out_share") if name in data}
        return {**values, "held_out": {**values["held_out"], "shards": {**same, **held_out}}}

    @model_validator(mode="after")
    def _nobody_on_both_sides(self) -> "TrainConfig":
        data, held_out = self.data.shards, self.held_out.shards if self.held_out else None
        if data is None or held_out is None or files.absolute(data.url) != files.absolute(held_out.url):
            return self
        if {data.part, held_out.part} != {"train", "held_out"}:
            raise ValueError(
                "held_out must be of other people: set data.shards.part=train, held_out.shards.part=held_out"
            )
        if data.held_out_share != held_out.held_out_share:
            raise ValueError("held_out must be of other people: make data's and its shards.held_out_share the same")
        return self
