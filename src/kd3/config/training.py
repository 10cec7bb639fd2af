"""Settings of training: budget, optimizer, schedule, augmentation. Free of torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from kd3.config.settings import BatchSize, Count, Settings, split_commas

DEFAULT_IMAGES = 200_000
RANDOM_RATES = {"lr": 0.1, "matrix_lr": 0.3}
INHERITED_RATES = {"lr": 0.05, "matrix_lr": 0.025}
SHORT_INHERITED_RATES = {"lr": 0.05, "matrix_lr": 0.1}  # for a budget below SHORT: small steps would not get far
UNNORMALISED_RATES = {"lr": 0.001, "matrix_lr": 0.03}  # of a student without normalisation layers; docs/paper.md
RANDOM_BATCH, INHERITED_BATCH = 64, 128
LEAST_STEPS = 100  # of a student that inherits; docs/results/inherit-fit-recall.md#fewer-and-more-images
SHORT = LEAST_STEPS * INHERITED_BATCH  # images
# The most that `--batch-size auto` takes on a GPU. 64, 128 and 256 images per step are level for a student that
# inherits its weights, trained with Muon on 60,000 images (docs/results/inherit-fit-recall.md#recipe). Nothing larger
# has been shown to be level, and of random starts nothing above 64.
LARGEST_BATCH = 256
# Unset learning rates grow with this power of the batch: the noise of a mean gradient falls with its root, and fewer
# steps must get as far. Rates up to twice as large are level in the same table, so it does not decide the power.
RATE_POWER = 0.5


class TrainSettings(Settings):
    """The training loop: budget, optimizer, schedule, augmentation."""

    images: Count | None = Field(
        None,
        ge=1,
        description=f"budget in training images, rounded up to whole batches, such as 200k or 1.5M (default: "
        f"{DEFAULT_IMAGES // 1000}k)",
    )
    epochs: float | None = Field(
        None,
        gt=0,
        description="budget in pool sizes instead: E epochs are E times the pool's training images",
    )
    epoch_of: Literal["pool", "selected"] = Field(
        "pool",
        description="meaning of --epochs: an epoch has as many images as the 'pool' has for training, or (paper's "
        "preset) is one pass over the 'selected' images, including the last, smaller batch, so a run "
        "that selects less is shorter",
    )
    batch_size: BatchSize | None = Field(
        None,
        description="images per step; small batches learn more from few images (default: 64; 128 for a student "
        f"that inherits its weights and has {SHORT:,} images or more). 'auto' is the default on a CPU, and on a GPU "
        f"the largest batch, up to {LARGEST_BATCH}, that keeps the accuracy (of a student that inherits, with muon), "
        f"leaves {LEAST_STEPS} steps or more and fits into half of the free memory; learning rates that are not given "
        "then grow with the square root of the batch, from those of the default",
    )
    micro_batch: int | None = Field(
        None,
        ge=1,
        description="process a batch in parts of this many images, one after the other, to save memory; refused "
        "if that would train a different student: with batch norms, or losses that compare images",
    )
    optimizer: Literal["muon", "sgd"] = Field(
        "muon",
        description="'muon' gives hidden convolutions and linear layers orthogonal steps and trains the rest (the "
        "student's own classifier, embeddings, tables of positions, batch norms) with SGD; 'sgd' "
        "(paper) trains everything with SGD",
    )
    lr: float | None = Field(
        None,
        gt=0,
        description="peak learning rate of SGD (default: 0.1; with muon 0.05 for a student that inherits its weights, "
        "and 0.001 for one without normalisation layers)",
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of SGD")
    matrix_lr: float | None = Field(
        None,
        gt=0,
        description="peak learning rate of Muon (default: 0.3; for a student that inherits its weights 0.025, or "
        f"0.1 below {SHORT:,} images; 0.03 for one without normalisation layers)",
    )
    matrix_momentum: float = Field(0.95, ge=0, lt=1, description="momentum of Muon")
    nesterov: bool = Field(True, description="Nesterov momentum")
    weight_decay: float = Field(5e-4, ge=0, description="weight decay")
    schedule: Literal["cosine", "step"] = Field(
        "cosine", description="'cosine' falls to 0 over the budget; 'step' divides by 10 at each milestone"
    )
    milestones: Annotated[list[float], BeforeValidator(split_commas)] = Field(
        [0.625, 0.75, 0.875], description="for 'step': parts of the budget, separated by commas"
    )
    warmup_steps: int = Field(50, ge=0, description="steps over which the learning rate rises from 0")
    augmentation: Literal["crop", "resized-crop", "none"] = Field(
        "crop",
        description="'crop' shifts by up to an eighth of the side; 'resized-crop' (paper) zooms in, with the detail of "
        "a pool whose images are larger than the teacher's",
    )
    flip: bool = Field(True, description="mirror half of the images; switch it off if left and right matter")
    mixup: float = Field(
        0.0,
        ge=0,
        le=1,
        description="part of the batches in which every image is mixed with another of the batch, with a uniform "
        "share from 0 to 1; the teacher sees the same mixtures",
    )
    fixed_views: int = Field(
        0,
        ge=0,
        le=1000,
        description="draw each image's views from this many fixed ones and store the teacher's features of them "
        "beside the pool, so the teacher runs once per view: more disk, fewer teacher passes; 0: a "
        "new view each time",
    )
    random_weights: Literal["he", "torch"] = Field(
        "he",
        description="initialisation of the convolutions of a zoo student (kd3:) and of the projector: 'he' normal "
        "(He et al.), 'torch' (paper's preset) uniform, PyTorch's default; networks of other "
        "libraries keep their own",
    )
    evals: int = Field(
        50, ge=1, description="most evaluations on the held-out images (and --eval-data); they follow rounds"
    )
    share: float = Field(
        1.0, gt=0, le=1, description="train on this random part of the pool only; the held-out images stay the same"
    )
    holdout: int = Field(
        1000,
        ge=2,
        description="pool images never used for training, at most a tenth of it; the agreement with the teacher is "
        "measured on them",
    )
    fold_batch_norms: bool = Field(
        False,
        description="merge batch norms into convolutions if a network only runs forward (teacher, scoring): up to "
        "a tenth faster on a CPU, with different rounding",
    )
    compile_teacher: bool = Field(
        False,
        description="compile the teacher before the first step: up to a minute, then faster steps; for long runs",
    )
    cuda_graph: Literal["auto", "off"] = Field(
        "auto",
        description="on a GPU: 'auto' records a step once and launches it as one CUDA graph, if one process "
        "trains in bf16 or float32; 'off' launches its operations one by one",
    )
    tf32: bool = Field(True, description="on a GPU: allow TF32 rounding in products of float32 matrices")
    deterministic: bool = Field(
        False, description="on a GPU: use only kernels that give the same bits each time, which are slower"
    )
    checkpoint_minutes: float = Field(5.0, gt=0, description="save a checkpoint at least this often")
    checkpoint_steps: int | None = Field(
        None, ge=1, description="also save a checkpoint after this many steps (default: by the clock only)"
    )
    batch_norm: Literal["sync", "local"] = Field(
        "sync",
        description="with several processes: 'sync' normalises by the whole batch, as one process would; 'local' "
        "by each part, with less communication",
    )

    def settled(self, *, inherited: bool, normalised: bool = True, batch: int | None = None) -> TrainSettings:
        """Return the settings with unset learning rates and batch size filled in.

        `batch` is what `auto` is on a device (None: the default); unset learning rates grow with its square root.
        A student that is not `normalised` has no normalisation layers.
        """
        short = self.epochs is None and (self.images or DEFAULT_IMAGES) < SHORT
        rates = (SHORT_INHERITED_RATES if short else INHERITED_RATES) if inherited else RANDOM_RATES
        if not normalised and self.optimizer == "muon":
            rates = UNNORMALISED_RATES
        usual = INHERITED_BATCH if inherited and not short else RANDOM_BATCH
        growth = ((batch or usual) / usual) ** RATE_POWER
        settled: dict[str, float] = {name: getattr(self, name) or growth * rate for name, rate in rates.items()}
        given = None if self.batch_size == "auto" else self.batch_size
        return self.model_copy(update={**settled, "batch_size": given or batch or usual})

    def larger_batches(self, *, inherited: bool, images: int) -> list[int]:
        """Return the batch sizes above the default that keep the recipe's accuracy, ascending.

        `images` are those of the pool to train on: no batch is larger, and they set the length of a budget in epochs.
        """
        if not inherited or self.optimizer != "muon":
            return []
        budget = (self.images or DEFAULT_IMAGES) if self.epochs is None else self.epochs * images
        most = min(LARGEST_BATCH, images, budget / LEAST_STEPS)
        doubled = (INHERITED_BATCH << times for times in range(1, LARGEST_BATCH.bit_length()))
        return [size for size in doubled if size <= most]

    @property
    def batch(self) -> int:
        """Images per step; that of a random start if unresolved."""
        return self.batch_size if isinstance(self.batch_size, int) else RANDOM_BATCH

    @property
    def peak(self) -> float:
        """The peak learning rate of SGD; that of a random start if unresolved."""
        return self.lr or RANDOM_RATES["lr"]

    @property
    def matrix_peak(self) -> float:
        """The peak learning rate of Muon's weights; that of a random start if unresolved."""
        return self.matrix_lr or RANDOM_RATES["matrix_lr"]

    @model_validator(mode="after")
    def _views_that_can_be_fixed(self) -> TrainSettings:
        if self.fixed_views and self.augmentation != "crop":
            raise ValueError(f"fixed_views goes with augmentation crop, not {self.augmentation}")
        return self

    @model_validator(mode="after")
    def _mixtures_that_the_teacher_sees(self) -> TrainSettings:
        if self.mixup and self.fixed_views:
            raise ValueError("mixup makes new images at each step, of which fixed_views keeps nothing; leave one out")
        return self

    @model_validator(mode="after")
    def _batches_of_one_size(self) -> TrainSettings:
        if self.compile_teacher and self.epochs is not None and self.epoch_of == "selected":
            raise ValueError(
                "compile_teacher goes with batches of one size, and an epoch of the selected images ends in a smaller "
                "one; give epoch_of pool, or do not compile"
            )
        return self

    @model_validator(mode="after")
    def _one_budget(self) -> TrainSettings:
        if self.images is not None and self.epochs is not None:
            raise ValueError("give the budget as images or as epochs, not both")
        if self.epochs is None and (budget := self.images or DEFAULT_IMAGES) < self.batch:
            raise ValueError(
                f"a budget of {budget:,} images is less than one batch of {self.batch:,}; give more images or a "
                f"smaller batch_size"
            )
        return self
