"""Shrinking of a teacher to a student: the plan, and the smaller network with the teacher's weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kd3.config.shrink import Shrink, ShrinkPlan
from kd3.inheritance.depth import Blocks, Rule, blocks_to_drop, measured_blocks
from kd3.inheritance.plan import Inheritance, Part
from kd3.inheritance.width import CannotNarrow, narrowed
from kd3.models.calling import copy_of
from kd3.models.costs import SampleSize, multiply_adds, parameters_of
from kd3.models.head import as_logits, evaluating
from kd3.models.shrunk import shrink
from kd3.models.teacher import Teacher
from kd3.runtime.errors import KD3Error, in_brief

PROBED = 2  # images
MEASURED = SampleSize(32, 8)  # images for measuring blocks


def plan_shrinking(
    teacher: Teacher, images: Tensor, asked: Shrink, *, rule: Rule, known: Blocks | None = None
) -> ShrinkPlan:
    """Return the parts to remove from a teacher, so that at most the given share of its multiply-adds is left.

    Blocks first: students recover from their removal, and it saves time. Channels if a network has too few blocks, or
    on request.

    Shapes: images (B, C, H, W), normalised: unlabelled pool images. `known`: its blocks, if already measured.

    Raises:
        KD3Error: it cannot be made as small; the sentence gives the limit and the reason.
    """
    network = _copy(teacher)
    probe = images[:PROBED]
    before = multiply_adds(network, probe)
    if not before:
        raise KD3Error(f"teacher {teacher.name} cannot be shrunk: no convolution or matrix product is seen in it")
    whole = ShrinkPlan(
        share=asked.share,
        multiply_adds=before,
        multiply_adds_before=before,
        parameters=parameters_of(network),
        parameters_before=parameters_of(network),
    )
    most = asked.share * before
    blocks: list[str] = []
    if asked.kind != "width":
        known = known or blocks_of(teacher, images, rule)
        blocks = [path for block in blocks_to_drop(known, most=most) for path in block.paths]
    plan = _measured(teacher, whole.model_copy(update={"blocks": blocks}), probe)
    if plan.multiply_adds <= most:
        return plan
    if asked.kind == "depth":
        either = f"{Shrink(asked.share)}, which leaves out channels, too"
        raise KD3Error(f"{_cannot(teacher, asked)}: {_blocks_reach(plan)}; ask for more, or for {either}")
    shallow = _copy(teacher)
    shrink(shallow, plan)
    try:
        kept, sizes = narrowed(shallow, probe, most=most)
    except CannotNarrow as problem:
        reached = f"; {_blocks_reach(plan)}" if asked.kind == "any" else ""
        raise KD3Error(f"{_cannot(teacher, asked)}: {problem}{reached}") from None
    sets: list[list[int]] = []
    tensors = {name: [_place(axis, sets) for axis in axes] for name, axes in kept.items()}
    return _measured(teacher, plan.model_copy(update={"kept": sets, "tensors": tensors, "sizes": sizes}), probe)


def blocks_of(teacher: Teacher, images: Tensor, rule: Rule) -> Blocks:
    """Return the teacher's removable blocks, measured on some of the images (B, C, H, W).

    Raises:
        KD3Error: it is a complete saved program.
    """
    _check_parts(teacher)
    return measured_blocks(teacher, images[: MEASURED.of(images.shape[-1])], rule)


def shrunk(teacher: Teacher, plan: ShrinkPlan) -> nn.Module:
    """Return the smaller network, to be trained, with the teacher's weights in all remaining parts.

    Raises:
        KD3Error: the plan is another network's.
    """
    network = _copy(teacher)
    shrink(network, plan)
    for parameter in network.parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_(True)
    return network


def as_inheritance(network: nn.Module, plan: ShrinkPlan) -> Inheritance:
    """Return the origin of the smaller network's weights: always the layer of the same name."""
    narrow = {name.rpartition(".")[0] for name in plan.tensors}
    parts = [
        Part(path, path, "channels" if path in narrow else "whole", sum(p.numel() for p in own))
        for path, module in network.named_modules()
        if (own := list(module.parameters(recurse=False)))
    ]
    return Inheritance(parts)


def described(plan: ShrinkPlan) -> list[str]:
    """Return a plan as lines of text: remaining share, removed blocks by row, remaining channels by layer."""
    lines = [
        f"{100 * plan.reached:.1f}% of the multiply-adds ({plan.multiply_adds:,} of {plan.multiply_adds_before:,} an "
        f"image), {100 * plan.parameters / plan.parameters_before:.1f}% of the parameters ({plan.parameters:,} of "
        f"{plan.parameters_before:,})"
    ]
    rows: dict[str, list[str]] = {}
    for path in plan.blocks:
        row, _, name = path.rpartition(".")
        rows.setdefault(row, []).append(name)
    lines += [f"without {f'{row}: ' if row else ''}{', '.join(names)}" for row, names in rows.items()]
    widths = [
        f"{path} {sizes[name]}"
        for path, sizes in plan.sizes.items()
        for name in ("out_channels", "out_features")
        if name in sizes
    ]
    return [*lines, *([f"channels kept: {', '.join(widths)}"] if widths else [])]


def _measured(teacher: Teacher, plan: ShrinkPlan, probe: Tensor) -> ShrinkPlan:
    """Complete a plan with the remaining parts, after a trial run of the network.

    Raises:
        KD3Error: it does not run.
    """
    network = shrunk(teacher, plan)
    try:
        with torch.no_grad(), evaluating(network):
            logits = as_logits(network(probe))
    except Exception as problem:  # user code
        raise KD3Error(
            f"teacher {teacher.name} cannot be shrunk: without {len(plan.blocks)} of its blocks it does not run "
            f"({in_brief(problem)})"
        ) from problem
    assert logits.shape[1] == teacher.num_classes
    left = {"multiply_adds": multiply_adds(network, probe), "parameters": parameters_of(network)}
    return plan.model_copy(update=left)


def _copy(teacher: Teacher) -> nn.Module:
    _check_parts(teacher)
    return copy_of(teacher.module)


def _check_parts(teacher: Teacher) -> None:
    """Refuse a teacher whose parts cannot be distinguished."""
    if any(isinstance(part, torch.jit.ScriptModule | torch.fx.GraphModule) for part in teacher.module.modules()):
        raise KD3Error(
            f"teacher {teacher.name} is a program that was saved whole, of which no part can be left out; name the "
            f"code that builds it (path/to/net.py:build) and its weights, or another student"
        )


def _place(axis: Sequence[int] | None, sets: list[list[int]]) -> int | None:
    """Return the index of a set of channels in a list of distinct sets, extended if needed."""
    if axis is None:
        return None
    if axis not in sets:
        sets.append(list(axis))
    return sets.index(list(axis))


def _cannot(teacher: Teacher, asked: Shrink) -> str:
    return f"teacher {teacher.name} cannot be shrunk to {asked.share:g} of its multiply-adds"


def _blocks_reach(plan: ShrinkPlan) -> str:
    if not plan.blocks:
        return "it has no block that can be left out, none of which input and output have one shape"
    return f"leaving out blocks brings it to {plan.reached:.2g}"
