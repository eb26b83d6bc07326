"""What a training run is: its model, its stages, its data, and how it is laid over machines. Nothing heavy is imported here."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from shared.knobs import Knobs
from train.models import PAPER as PAPER_MODEL
from train.models import ModelKnobs
from train.size import Size
from train.stages import STAGES, Decoder, Generator, Joint

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]


class Phase(Knobs):
    """One stage, for so many optimizer steps."""

    stage: STAGES
    steps: Count
    learning_rate: Annotated[float, Field(gt=0)] = 2e-5


class Adam(Knobs):
    """AdamW as the base model was tuned: constant rate after a linear warm-up, at the start of every phase."""

    betas: tuple[Share, Share] = (0.9, 0.95)
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    max_norm: Annotated[float, Field(gt=0)] = 1.0
    """Of the gradient of a whole step; longer ones are scaled to it."""
    warmup_steps: Annotated[int, Field(ge=0)] = 100
    skip_spikes: Annotated[float, Field(gt=1)] | None = None
    """Leave out a step whose gradient is this many times longer than the median of the last 64; None: never."""
    ema_decay: Share | None = None
    """Keep an average of the weights, and export it; None: no average."""


class Reading(Knobs):
    """How samples are read ahead."""

    workers: Annotated[int, Field(ge=0)] = 2
    """Processes that decode, for each rank; 0 decodes in the trainer itself."""
    threads: Count = 8
    """That fetch bytes, for each worker."""
    prefetch: Count = 2
    """Decoded micro-batches that wait, for each worker."""
    ahead: Count = 8
    """Further micro-batches whose bytes are under way, for each worker."""
    cache: str = ""
    """A local folder that keeps what was fetched from a bucket; empty: none."""
    cache_gb: Annotated[float, Field(gt=0)] = 100.0
    """Size of the cache; the longest unused goes first."""
    max_corrupt: Share = 0.01
    """Share of a run's samples that may be unreadable before it stops; the first 8 are always borne."""
    keep: bool = False
    """Keep every sample in the memory of the training device once it is decoded: for small selections, read many times. A clip
    longer than the size then gives its first frames only."""

    @model_validator(mode="after")
    def _one_memory(self) -> "Reading":
        if self.keep and self.workers:
            raise ValueError(
                f"keep=true with workers={self.workers}: other processes cannot keep samples there; set workers=0"
            )
        return self


class Parallel(Knobs):
    """How the model is laid over ranks, and in which precision it computes."""

    mode: Literal["auto", "ddp", "fsdp"] = "auto"
    """ddp: every rank holds the model. fsdp: ranks share it. auto: fsdp on GPUs, also on one (it holds each block in half precision
    only while that runs), and where there is more than one rank. One rank with ddp runs the plain modules: small models are
    faster so."""
    micro_batch: Count = 1
    """Samples a rank takes at once; its share of the batch is accumulated from these."""
    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    """Of the arithmetic; weights and gradients are float32 always. auto: bfloat16 on GPUs."""
    recompute: Literal["none", "full", "selective"] = "selective"
    """What the backward pass computes again: nothing, all of a block, or all but attention and the perceptron's last product."""
    compile: bool = False
    """torch.compile of the denoiser's blocks: some 20 s at the start and for each size, 1.3 times as fast on an H200."""
    sequence: Count = 1
    """Neighboring ranks that share the tokens of one sample, for clips too long for one device; it divides the heads."""

    @model_validator(mode="after")
    def _sequence(self) -> "Parallel":
        if self.sequence > 1 and self.compile:
            raise ValueError(f"sequence={self.sequence} with compile=true was never tried: set parallel.compile=false")
        return self


class Keeping(Knobs):
    """Checkpoints."""

    every: Count = 500
    """Steps."""
    keep: Count = 3
    """The newest so many."""


class Logging(Knobs):
    """What is measured, and how often."""

    every: Count = 10
    """Steps between lines of metrics.jsonl."""
    validate_every: Annotated[int, Field(ge=0)] = 500
    """Steps between losses of the validation split at fixed times and seeds; 0: never."""
    num_validation: Count = 16
    """Samples of it."""
    sample_every: Annotated[int, Field(ge=0)] = 0
    """Steps between generated clips, drawn as RUN/samples/{step}.png and .mp4; 0: never."""
    tensorboard: bool = True
    """Where it is installed."""
    wandb: str = ""
    """A project of W&B; empty: none."""
    bar: bool = True


class TrainRecipe(Knobs):
    """One training run, from the selection to the exported model."""

    seed: int = 0
    """Of the order of samples and of all noise."""
    batch: Count = 8
    """Samples an optimizer step, over all ranks."""
    sizes: tuple[Size, ...] = (Size(),)
    """A clip is trained at the one nearest to its shape; every step has one size."""
    mixture: dict[str, Annotated[float, Field(gt=0)]] | None = None
    """Share of each data set; None: by the weights that `curate` gave the clips."""
    foreign: bool = False
    """Train on plain WebDataset tars of others, videos with captions but without labels, instead of a selection."""
    splits: tuple[Literal["train", "validation", "test"], ...] = ("train",)
    model: ModelKnobs = ModelKnobs()
    phases: tuple[Phase, ...]
    adam: Adam = Adam()
    reading: Reading = Reading()
    parallel: Parallel = Parallel()
    checkpoints: Keeping = Keeping()
    logging: Logging = Logging()
    latent_cache: str = ""
    """A folder that keeps encoded latents, filled as samples come by, best one that all machines see; empty: encode every time."""
    latent_cache_gb: Annotated[float, Field(gt=0)] = 1000.0
    """Size of it; when it is full, what is not in it is encoded every time."""
    preflight: bool = True
    """Before the first step, try one sample of every source and size, one step of every phase, and one checkpoint."""
    allow_other_selection: bool = False
    """Resume although the selection is not the one that the checkpoint was trained on."""

    @model_validator(mode="after")
    def _whole(self) -> "TrainRecipe":
        if not self.phases or not self.sizes:
            raise ValueError("expected at least one phase and one size")
        if len({str(size) for size in self.sizes}) < len(self.sizes):
            raise ValueError(f"sizes {', '.join(map(str, self.sizes))}: one is there twice")
        return self

    @property
    def num_steps(self) -> int:
        return sum(phase.steps for phase in self.phases)

    def phase_at(self, step: int) -> tuple[int, int, int]:
        """Index of the phase that does this step (counted from 0), and the phase's first and last-but-one step."""
        first = 0
        for index, phase in enumerate(self.phases):
            if step < first + phase.steps:
                return index, first, first + phase.steps
            first += phase.steps
        raise ValueError(f"step {step}: the run has {self.num_steps}")


TINY = TrainRecipe(
    batch=2,
    sizes=(Size(frames=9, height=64, width=96),),
    splits=("train", "validation", "test"),
    phases=(
        Phase(stage=Generator(), steps=20, learning_rate=1e-3),
        Phase(stage=Decoder(), steps=20, learning_rate=1e-3),
        Phase(stage=Joint(), steps=10, learning_rate=3e-4),
    ),
    adam=Adam(warmup_steps=5),
    reading=Reading(workers=0),
    parallel=Parallel(recompute="none"),
    checkpoints=Keeping(every=25, keep=2),
    logging=Logging(every=1, validate_every=0),
)
"""Every stage of training in a minute or two on a laptop's CPU, with random weights: it shows that all parts fit."""

SMALL = TrainRecipe(
    batch=2,
    sizes=(Size(frames=9, height=64, width=96),),
    model=ModelKnobs(base="small", decoder="small"),
    phases=(
        Phase(stage=Generator(), steps=700, learning_rate=1e-3),
        Phase(stage=Decoder(), steps=1000, learning_rate=1e-3),
        Phase(stage=Joint(), steps=250, learning_rate=3e-4),
    ),
    adam=Adam(warmup_steps=20),
    reading=Reading(workers=0),
    parallel=Parallel(micro_batch=2, recompute="none"),
    checkpoints=Keeping(every=250, keep=1),
    logging=Logging(every=50, validate_every=0, tensorboard=False),
)
"""Small models from random weights that do learn, in minutes on a CPU: to compare ways of training, not to generate."""

MEDIUM = TrainRecipe(
    batch=16,
    sizes=(Size(frames=17, height=96, width=144),),
    model=ModelKnobs(base="medium", decoder="medium"),
    phases=(
        Phase(stage=Generator(), steps=1500, learning_rate=4e-4),
        Phase(stage=Decoder(), steps=1500, learning_rate=4e-4),
        Phase(stage=Joint(), steps=400, learning_rate=1e-4),
    ),
    adam=Adam(warmup_steps=50),
    reading=Reading(workers=0, keep=True),
    parallel=Parallel(mode="ddp", micro_batch=16, recompute="none"),
    checkpoints=Keeping(every=1000, keep=1),
    logging=Logging(every=20, validate_every=0, tensorboard=False, bar=False),
)
"""As `small`, for one GPU and some hundreds of clips that fit its memory: a minute or two a stage."""

PAPER = TrainRecipe(
    model=PAPER_MODEL,
    phases=(
        Phase(stage=Generator(), steps=20_000),
        Phase(stage=Decoder(), steps=100_000, learning_rate=1e-4),
        Phase(stage=Joint(), steps=10_000),
    ),
    parallel=Parallel(compile=True),
)
"""As the paper trains: eight GPUs, batch 8, 49x480x720."""
