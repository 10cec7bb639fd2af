"""The frozen teacher: a trained classifier that never changes."""

from __future__ import annotations

import copy
import hashlib
import io
import warnings
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from kd3.config.records import Fit, Preparation, Signature, class_name
from kd3.models.arch import Origin
from kd3.models.batch_norms import Statistics, set_statistics
from kd3.models.calling import both_logits, calling_of, cast_layers, copy_of, in_float32
from kd3.models.checkpoint import weights_hash
from kd3.models.fold import CompiledTeacher, fold, foldable
from kd3.models.head import Head, HeadNotFound, ModelOutput, as_logits, find_head, run_with_features
from kd3.models.preprocessing import Normalisation
from kd3.models.soundness import sound_logits
from kd3.runtime import console
from kd3.runtime.compute import Compute, full_float32
from kd3.runtime.errors import KD3Error, in_brief

CAST_PROBE = 2  # images to compare a teacher with cast weights
CAST_TOLERANCE = 1e-3  # of the largest logit; the same kernels give the same bits


class Teacher(nn.Module):
    """A trained classifier with its input requirements.

    Always in evaluation mode, without gradients, its weights in float32. The module is copied; the caller's is
    unchanged.

    Args:
        module: any classifier, normalised images (B, C, H, W) -> logits (B, K), or one logit z that stands for (0, z).
        mean: its normalisation, per channel of RGB in [0, 1]; one value: it takes grey images, C = 1.
        std: of the same.
        input_size: side of its input in pixels; None takes the pool's.
        classes: names in the order of the logits; None numbers them.
        num_classes: if known; identifies the logits among several outputs.
        output: the output with the logits, by place or name.
        fit: how pictures become squares, "crop" or "squash"; None takes the pool's, or crops without a pool.

    Raises:
        KD3Error: the module does not run on an image of `input_size`, or returns no sound logits;
            or a class is listed twice.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        input_size: int | None = None,
        classes: Sequence[str] | None = None,
        name: str | None = None,
        num_classes: int | None = None,
        output: int | str | None = None,
        fit: Fit | None = None,
    ) -> None:
        super().__init__()
        self.module = _frozen_copy(module)
        self.normalise = Normalisation(mean, std)
        self.input_size = input_size
        self.fit = fit
        self.name = name or type(module).__name__
        self.loaded = "a live module"
        self.origin: Origin | None = None  # None: only the caller can build it
        self.pictures = ""  # its library's picture preparation, in words
        self.assumed: list[str] = []  # settings taken from the library's own weights
        self.is_turned = False  # it was trained on B, G, R
        self.head: Head | None = None
        self.head_problem: str | None = None
        self.num_classes = num_classes or (len(classes) if classes else 0)
        self.output = output
        self.runs_in_autocast: bool | None = None  # None: not tried yet
        self.is_folded = False  # the same function up to rounding
        self._compiled: CompiledTeacher | None = None
        self.class_names = [class_name(name) for name in classes] if classes else None
        if twice := next((one for one, times in Counter(self.class_names or ()).items() if times > 1), None):
            raise KD3Error(f"teacher {self.name} lists the class {twice!r} more than once")
        self.known_hash: str | None = None  # of weights that the module's state does not (or no longer) show
        self.eval()
        if input_size is not None:
            self.fit_to(input_size)

    @property
    def classes(self) -> list[str]:
        """Class names in the order of the logits."""
        return self.class_names or [str(label) for label in range(self.num_classes)]

    @property
    def is_nameless(self) -> bool:
        """Whether nobody named its classes; names such as "0" to "9" are names if they were given."""
        return self.class_names is None

    @property
    def preparation(self) -> Preparation:
        """Preparation of pictures for its input.

        Raises:
            KD3Error: its input size is unknown.
        """
        if self.input_size is None:
            raise KD3Error("the teacher's input size is not known; give it as Teacher(..., input_size=...)")
        return Preparation(self.input_size, self.fit or "crop")

    def seeing(self, preparation: Preparation) -> Teacher:
        """Return the same teacher for images prepared in this way, such as a pool's or its student's.

        Raises:
            KD3Error: its description states another preparation.
        """
        if self.fit not in (None, preparation.fit):
            raise KD3Error(
                f"teacher {self.name} is described with fit: {self.fit} but these images were made by "
                f"{preparation.fit}; ingest the crawl with --fit {self.fit}, or leave fit out of the description"
            )
        other = copy.copy(self)
        other.fit = preparation.fit
        return other

    def fit_to(self, input_size: int) -> None:
        """Run the network once at its input size, count its classes and find its head.

        Raises:
            KD3Error: it does not run, returns no sound logits (see `soundness`), or disagrees with its class names.
        """
        self.input_size = input_size
        logits = sound_logits(
            self.module,
            input_size,
            what=f"teacher {self.name}",
            channels=self.normalise.channels,
            num_classes=self.num_classes or None,
            output=self.output,
        )
        self.num_classes = logits.shape[1]
        if self.class_names is not None and len(self.class_names) != self.num_classes:
            raise KD3Error(f"teacher {self.name} has {self.num_classes} logits but {len(self.class_names)} class names")
        try:
            self.head, self.head_problem = find_head(self.module, input_size), None
        except HeadNotFound as problem:
            self.head, self.head_problem = None, str(problem)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits. Shapes: (B, C, H, W), normalised floats -> (B, K)."""
        if self._compiled is not None:
            return self._compiled(images).logits
        with torch.no_grad(), self._autocast(images):
            return as_logits(self.module(images))

    def outputs(self, images: Tensor) -> ModelOutput:
        """Return features and logits. Shapes: (B, C, H, W), normalised floats -> (B, C', h, w), (B, K).

        Raises:
            KD3Error: no head was found in this network.
        """
        head = self.shared_head()
        if self._compiled is not None:
            return self._compiled(images)
        with torch.no_grad(), self._autocast(images):
            return run_with_features(self.module, head, images)

    def _autocast(self, images: Tensor) -> AbstractContextManager[Any]:
        """Return a context that turns autocast off for a network that fails in it."""
        kind = images.device.type
        if not torch.is_autocast_enabled(kind):
            return nullcontext()
        if self.runs_in_autocast is None:
            try:
                self.module(images[:2])
                self.runs_in_autocast = True
            except Exception as problem:
                self.runs_in_autocast = False
                console.warn(
                    f"teacher {self.name} does not run in autocast and computes in float32: {in_brief(problem)}"
                )
        return nullcontext() if self.runs_in_autocast else torch.autocast(kind, enabled=False)

    def shared_head(self) -> Head:
        """Return the head, for methods that share it with the student.

        Raises:
            KD3Error: it cannot be shared; the sentence gives the reason.
        """
        if self.head is None:
            raise KD3Error(
                f"the head of teacher {self.name} cannot be shared: {self.head_problem}; "
                f"use --method kd, which gives the student its own"
            )
        return self.head

    @full_float32()
    def classifier(self) -> nn.Linear:
        """Return a frozen plain copy of the layer that makes the logits; of one logit z, the layer that makes (0, z).

        Raises:
            KD3Error: the layer does more than a plain linear layer (a cosine head, say).
        """
        path = self.shared_head().classifier
        own = self.module.get_submodule(path)
        assert isinstance(own, nn.Linear | nn.Conv2d)
        weight = own.weight.detach().flatten(1)  # also of a 1 x 1 convolution
        bias = None if own.bias is None else own.bias.detach()
        single = calling_of(self.module).one_logit
        if single:
            weight = torch.cat([torch.zeros_like(weight), weight])
            bias = None if bias is None else torch.cat([torch.zeros_like(bias), bias])
        count, channels = weight.shape
        # No random initialisation: it would shift the caller's later draws.
        plain = nn.Linear(channels, count, bias=bias is not None, device="meta")
        plain = plain.to(weight.dtype).to_empty(device=weight.device).requires_grad_(False)
        plain.weight.copy_(weight)
        if bias is not None:
            plain.bias.copy_(bias)
        probe = torch.randn(4, channels, generator=torch.Generator().manual_seed(0)).to(weight)
        with torch.no_grad():
            theirs = own(probe) if isinstance(own, nn.Linear) else own(probe[:, :, None, None]).flatten(1)
            theirs = both_logits(theirs) if single else theirs
            if not torch.allclose(plain(probe), theirs, rtol=1e-4, atol=1e-5):
                raise KD3Error(
                    f"the classifier '{path}' of teacher {self.name} is more than a linear layer "
                    f"({type(own).__name__}) and cannot be shared; use --method kd, which gives the student its own"
                )
        return plain

    def sharing_problem(self) -> str | None:
        """Return why the student cannot take the classifier over; None where it can."""
        if self.head is None:
            return self.head_problem
        try:
            self.classifier()
        except KD3Error:
            layer = type(self.module.get_submodule(self.head.classifier)).__name__
            return f"the classifier '{self.head.classifier}' is more than a linear layer ({layer})"
        return None

    def signature(self) -> Signature:
        """Return its input size, normalisation and class names."""
        assert self.input_size is not None
        return Signature(self.normalise.mean, self.normalise.std, self.input_size, self.classes, self.fit or "crop")

    def fingerprint(self) -> str:
        """Return a hash of the weights and the normalisation, to distinguish teachers."""
        weights = self.known_hash or weights_hash(self.module)
        identity = repr((weights, self.normalise.mean, self.normalise.std))
        return hashlib.sha256(identity.encode()).hexdigest()

    def with_statistics(self, statistics: Statistics) -> Teacher:
        """Return the same teacher with other batch norm statistics, and another fingerprint."""
        other = copy.copy(self)
        module = copy.deepcopy(self.module)
        set_statistics(module, statistics)
        other._modules = {**self._modules, "module": module}
        if self.known_hash:
            other.known_hash = hashlib.sha256((self.known_hash + weights_hash(module)).encode()).hexdigest()
        return other

    def folded(self) -> Teacher:
        """Return the same teacher with batch norms merged into convolutions where the outputs stay the same.

        It keeps the fingerprint: it is the same function, up to rounding.
        """
        assert self.input_size is not None
        head = self.head

        def outputs(network: nn.Module, images: Tensor) -> list[Tensor]:
            if head is None:
                return [as_logits(network(images))]
            seen = run_with_features(network, head, images)
            return [seen.features, seen.logits]

        other = copy.copy(self)
        module = fold(self.module, foldable(self.module, self.input_size, outputs))
        other.is_folded = True
        other._modules = {**self._modules, "module": module}
        other.known_hash = self.known_hash or weights_hash(self.module)
        return other

    def compiled(self) -> Teacher:
        """Return the same teacher, compiled for batches of one size; call it on the final device.

        The first batch takes up to a minute; a failed compilation is reported there.
        """
        other = copy.copy(self)
        other._compiled = CompiledTeacher(self.module, self.head)
        return other

    def cast_for(self, compute: Compute) -> Teacher:
        """Return the same teacher with the weights cast once that autocast would cast at every pass.

        It returns the teacher itself in float32, if it does not run in autocast, or if its outputs would change. Call
        it on the final device.
        """
        kind = compute.autocast_type
        if kind is None or isinstance(self.module, torch.jit.ScriptModule) or self.input_size is None:
            return self
        other = copy.copy(self)
        module = copy_of(self.module)
        cast_layers(module, kind)
        other._modules = {**self._modules, "module": module}
        other.known_hash = self.known_hash or weights_hash(self.module)
        shape = (CAST_PROBE, self.normalise.channels, self.input_size, self.input_size)
        probe = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(compute.device)
        try:
            with compute.autocast():
                expected, found = self(probe).float(), other(probe).float()
        except RuntimeError:
            return self
        same = (found - expected).abs().max() <= CAST_TOLERANCE * expected.abs().max()
        return other if self.runs_in_autocast and bool(same) else self

    def train(self, mode: bool = True) -> Teacher:
        """Stay in evaluation mode, whatever the argument."""
        return super().train(False)


def _frozen_copy(module: nn.Module) -> nn.Module:
    if not isinstance(module, torch.jit.ScriptModule):
        return in_float32(copy_of(module)).requires_grad_(False)
    # TorchScript cannot copy like this: its parameters would become non-leaf tensors.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        buffer = io.BytesIO()
        torch.jit.save(module, buffer)
        buffer.seek(0)
        found: nn.Module = torch.jit.load(buffer)  # type: ignore[no-untyped-call]
    for parameter in found.parameters():
        parameter.requires_grad_(False)
    return in_float32(found)
