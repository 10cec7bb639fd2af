"""The layers of a distillation's settings: defaults, preset, file, flags; later ones win."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from kd3.config.commands import DistillConfig, unused_options
from kd3.config.kinds import READING
from kd3.config.methods import METHODS
from kd3.config.settings import build, merge, read_yaml
from kd3.errors import KD3Error, unknown_name
from kd3.runs.folder import RunFolder
from kd3.runs.places import PLACES, found

DEFAULT_METHOD = str(DistillConfig.model_fields["method"].default)
# Settings of location and storage, which do not change the training. Moved inputs are identified by content.
MAY_CHANGE = (*PLACES, *READING, "device", "devices", "nodes", "train.checkpoint_minutes", "train.checkpoint_steps")


def presets() -> list[str]:
    """Return the names of the presets that come with kd3."""
    folder = resources.files("kd3") / "presets"
    return sorted(Path(entry.name).stem for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def preset_values(name: str) -> dict[str, Any]:
    """Return a preset's settings.

    Raises:
        KD3Error: there is none of this name.
    """
    if name not in presets():
        raise unknown_name("preset", name, presets())
    with resources.as_file(resources.files("kd3") / "presets" / f"{name}.yaml") as path:
        return read_yaml(path, what="preset")


def layered(
    flags: Mapping[str, Any], *, config: Path | None = None, preset: str | None = None, where: str
) -> DistillConfig:
    """Return the settings of a run: defaults < preset < file < flags.

    Relative paths in the file (teacher, pool, out, eval_data) start from the working directory, as on the command line;
    those in a run's own config.yaml also from its folder. The file may name its
    preset.

    Raises:
        KD3Error: a layer holds something unknown or out of range.
    """
    from_file = read_yaml(config, what="configuration file") if config else {}
    if config is not None and RunFolder(config.parent).config == config:
        from_file = found(config.parent, from_file, but=flags)
    named = from_file.pop("preset", None)
    if named is not None and not isinstance(named, str):
        raise KD3Error(f"preset ({config}) must be a name; one of: {', '.join(presets())}")
    chosen = preset or named
    base = preset_values(chosen) if chosen else {}
    if isinstance(method := merge(base, from_file, flags).get("method", DEFAULT_METHOD), str):
        base = of_method(base, method)
        for name in METHODS.keys() & flags.keys() - {method}:
            raise KD3Error(f"{unused_options(name, method)} ({where})")
    _replace_budget(from_file, [base])
    if config:
        # Check it separately first, so that errors name the file.
        placeholders = dict.fromkeys(("teacher", "student", "pool", "out"), "-")
        chosen_by_flag = {"method": flags["method"]} if "method" in flags else {}
        build(DistillConfig, merge(placeholders, base, from_file, chosen_by_flag), where=str(config))
    _replace_budget(flags, [base, from_file])
    return build(DistillConfig, merge(base, from_file, flags), where=where)


def of_method(values: Mapping[str, Any], method: str) -> dict[str, Any]:
    """Return settings without the options of the methods that are not chosen."""
    return {name: value for name, value in values.items() if name not in METHODS or name == method}


def _replace_budget(layer: Mapping[str, Any], below: list[dict[str, Any]]) -> None:
    """Remove the budget, in images or epochs, from the layers below one with its own."""
    train = layer.get("train")
    if isinstance(train, Mapping) and ("images" in train or "epochs" in train):
        for lower in below:
            if isinstance(lower.get("train"), dict):
                lower["train"] = {k: v for k, v in lower["train"].items() if k not in ("images", "epochs")}


def resumed(flags: Mapping[str, Any], *, where: str) -> DistillConfig:
    """Return the settings of the run to continue; `flags` may only change its locations and checkpoints.

    Raises:
        KD3Error: `out` is missing or holds no run, or a flag differs from the run's own setting.
    """
    if "out" not in flags:
        raise KD3Error(f"--out is missing ({where}): --resume needs the folder of the run to continue")
    saved_path = RunFolder(Path(str(flags["out"]))).config
    if not saved_path.is_file():
        raise KD3Error(f"{flags['out']} holds no run to resume: there is no {saved_path.name}")
    saved = read_yaml(saved_path, what="configuration of the run")
    saved = {**of_method(saved, str(saved.get("method", DEFAULT_METHOD))), "out": flags["out"]}
    if "init" not in saved:  # begun before students inherited
        saved = {**saved, "init": "random", "teacher_statistics": "lost", "recall": "off"}
    saved = found(Path(str(flags["out"])), saved, but=flags)
    # `auto` was resolved when the run began.
    flags = {k: v for k, v in flags.items() if not (k in ("device", "precision") and v == "auto")}
    before = build(DistillConfig, saved, where=str(saved_path)).settled()
    after = build(DistillConfig, merge(saved, flags), where=where).settled()
    for path, old, new in differences(before.model_dump(), after.model_dump()):
        if path in MAY_CHANGE:
            continue
        raise KD3Error(
            f"{path} is {old!r} in the run {flags['out']} and cannot become {new!r} on --resume; "
            f"leave the flag out, or start a new run"
        )
    return after


def differences(before: Mapping[str, Any], after: Mapping[str, Any], at: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield the dotted path and both values of each leaf that differs.

    >>> list(differences({"a": {"b": 1}}, {"a": {"b": 2}}))
    [('a.b', 1, 2)]
    """
    for key in before:
        old, new = before[key], after.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from differences(old, new, f"{at}{key}.")
        elif old != new:
            yield f"{at}{key}", old, new
