"""Settings of `kd3 distill` and their layers: defaults, preset, file, flags; later ones win."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from kd3.config.commands import GIVEN_IMAGES, RECALLED_IMAGES
from kd3.config.methods import METHODS, DFNDOptions, KD3Options, KDOptions, LabelsOptions, SimKDOptions
from kd3.config.settings import (
    READING,
    Precision,
    PrivateHosts,
    Recall,
    Settings,
    TrustEntries,
    build,
    merge,
    one_or_many,
    place_or_name,
    read_yaml,
    split_commas,
)
from kd3.config.shrink import is_shrunk
from kd3.config.training import TrainSettings
from kd3.runtime.errors import KD3Error, unknown_name
from kd3.runtime.run_folder import PLACES, RunFolder, found


def unused_options(method: str, chosen: str) -> str:
    """Return the message for options of a method that is not chosen."""
    return f"options of method {method!r} have no effect with method {chosen!r}; leave them out, or choose {method!r}"


class DistillConfig(Settings):
    """Distil a teacher into a student on a pool of web images."""

    teacher: str = Field(
        description="teacher description (YAML): arch, weights, num_classes, mean, std, input_size; or timm:NAME, "
        "torchvision:NAME, hf:NAME_OR_FOLDER"
    )
    student: str = Field(
        description="student architecture: kd3:resnet20, timm:NAME, torchvision:NAME, hf:NAME_OR_FOLDER, "
        "path/to/net.py:build, package.module:build; or shrink:0.3, the teacher with that share of "
        "its multiply-adds (shrink:depth:0.3 and shrink:width:0.3 remove only blocks or only "
        "channels)"
    )
    student_args: dict[str, Any] = Field({}, description="arguments of the student's builder (YAML only)")
    student_output: Annotated[int | str | None, BeforeValidator(place_or_name)] = Field(
        None,
        description="place (0, 1, ...) or name of the student output that holds the logits (default: the first "
        "with one value per class)",
    )
    pool: str = Field(description="pool made by `kd3 ingest`")
    out: str = Field(description="run folder")
    method: str = Field("kd3", description="one of: " + ", ".join(METHODS))
    eval_data: str | None = Field(
        None,
        description="labelled images for an accuracy report at each evaluation; they choose nothing",
    )
    track: Annotated[list[Literal["tensorboard", "wandb", "mlflow", "none"]], BeforeValidator(split_commas)] = Field(
        ["tensorboard"],
        description="additional outputs for curves, separated by commas: tensorboard (files in the run folder), "
        "wandb, mlflow; or 'none'",
    )
    init: Literal["auto", "inherit", "random"] = Field(
        "auto",
        description="the student's first weights: 'inherit' takes them from the teacher wherever a part fits, "
        "'random' does not; 'auto' inherits with method kd3, if anything fits, and starts the other "
        "methods at random, as published",
    )
    inherit_blocks: Literal["even", "change", "recovery"] | None = Field(
        None,
        description="blocks that a shallower student inherits: 'even' spacing, those that 'change' their input "
        "most, or those whose removal allows the least 'recovery' (PRACTISE) (default: even; for a "
        "shrunk teacher: recovery)",
    )
    teacher_statistics: Literal["lost", "crawl", "blend", "auto"] | None = Field(
        None,
        description="batch-norm statistics of the teacher during training: 'lost' its own, 'crawl' the pool's, "
        "'blend' a mixture (--teacher-blend), 'auto' the most informative mixture (default: auto with "
        "method kd3, lost with the others)",
    )
    teacher_blend: float | None = Field(
        None, ge=0, le=1, description="with teacher_statistics 'blend': the pool's share b in the statistics"
    )
    seed: int = Field(0, ge=0, lt=2**31, description="seed of all random numbers")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    devices: int = Field(1, ge=1, description="processes on this machine, one per GPU; batches are divided among them")
    nodes: int = Field(1, ge=1, description="machines, each with that many processes; see docs/scale.md")
    precision: Precision = Field(
        "auto", description="auto means bfloat16 if the hardware supports it, else 32; 16 needs a GPU"
    )
    recall: Recall | None = Field(
        None,
        description="images to recall from the teacher at the end, for the student's batch norms: a number, "
        f"'off', or 'auto', {RECALLED_IMAGES} if both networks have batch norms (default: auto with "
        "method kd3, off with the others)",
    )
    deployment: str | None = Field(
        None,
        description="unlabelled images from the place where the student will work (a pool, or any source of kd3 "
        f"ingest), used instead of recalled images: at most {GIVEN_IMAGES}, or the number of --recall",
    )
    keep_out: Annotated[list[str], BeforeValidator(one_or_many)] = Field(
        [],
        description="test images of the student (folder, archive, ...; repeat it for more): the student's batch "
        "norms are counted on no image like one of them",
    )
    trust_entries: TrustEntries = False
    private_hosts: PrivateHosts = False
    train: TrainSettings = Field(TrainSettings(), description="training")
    kd3: KD3Options = Field(KD3Options(), description="options of method kd3")
    kd: KDOptions = Field(KDOptions(), description="options of method kd")
    dfnd: DFNDOptions = Field(DFNDOptions(), description="options of method dfnd")
    simkd: SimKDOptions = Field(SimKDOptions(), description="options of method simkd")
    labels: LabelsOptions = Field(LabelsOptions(), description="options of method labels")

    @model_validator(mode="after")
    def _one_kind_of_images(self) -> DistillConfig:
        if self.deployment is not None and self.recall == "off":
            raise ValueError("deployment images take the place of recalled ones; leave recall off out")
        return self

    @model_validator(mode="after")
    def _shrunk_teacher(self) -> DistillConfig:
        if is_shrunk(self.student):
            if self.init == "random":
                raise ValueError(f"{self.student} starts from the teacher's weights; leave init random out")
            if self.student_args:
                raise ValueError(f"{self.student} is the teacher's network; leave student_args out")
        return self

    @field_validator("method")
    @classmethod
    def _known_method(cls, name: str) -> str:
        if name not in METHODS:
            raise ValueError(str(unknown_name("method", name, METHODS)))
        return name

    @model_validator(mode="after")
    def _mixtures_that_mean_something(self) -> DistillConfig:
        if self.train.mixup and self.method == "labels":
            raise ValueError("mixup needs a teacher's predictions for the mixtures, and method labels has no teacher")
        if self.train.mixup and self.method == "kd3" and self.kd3.scoring == "training":
            raise ValueError("mixup goes with kd3.scoring fresh: what is predicted of a mixture is of no image")
        return self

    @model_validator(mode="after")
    def _blend_where_it_counts(self) -> DistillConfig:
        if (self.teacher_statistics == "blend") != (self.teacher_blend is not None):
            raise ValueError("teacher_blend goes with teacher_statistics 'blend', and 'blend' needs it")
        return self

    @model_validator(mode="after")
    def _options_of_the_method(self) -> DistillConfig:
        for name, entry in METHODS.items():
            if name != self.method and getattr(self, name) != entry.options():
                raise ValueError(unused_options(name, self.method))
        return self

    def settled(self, *, rates: bool = True) -> DistillConfig:
        """Return the settings with every choice resolved that follows from the method.

        `rates` also fills in those of a random start as if the student had normalisation layers, which is known once
        it is built. By default KD3 inherits, fits its teacher and recalls, and the others run as published. A shrunk
        teacher inherits with any method.
        """
        ours = self.method == "kd3"
        shrunk = is_shrunk(self.student)
        init = "inherit" if shrunk else self.init if ours or self.init != "auto" else "random"
        statistics = self.teacher_statistics or ("auto" if ours else "lost")
        recall = self.recall or ("auto" if ours or self.deployment is not None else "off")
        blocks = self.inherit_blocks or ("recovery" if shrunk else "even")
        update: dict[str, Any] = {
            "init": init,
            "inherit_blocks": blocks,
            "teacher_statistics": statistics,
            "recall": recall,
        }
        if init == "random":
            if rates:
                update["train"] = self.train.settled(inherited=False)
            if getattr(self.method_options, "projector", None) == "auto":
                update[self.method] = self.method_options.model_copy(update={"projector": "simkd"})
        return self.model_copy(update=update)

    @property
    def trackers(self) -> list[str]:
        """The requested trackers."""
        return [name for name in dict.fromkeys(self.track) if name != "none"]

    @property
    def method_options(self) -> Settings:
        """The options of the chosen method."""
        options: Settings = getattr(self, self.method)
        return options


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
    flags = _without_auto(flags)
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


def _without_auto(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Return flags without each `auto` that was resolved when the run began."""
    kept = {name: value for name, value in flags.items() if not (name in ("device", "precision") and value == "auto")}
    if isinstance(train := kept.get("train"), Mapping) and train.get("batch_size") == "auto":
        kept["train"] = {name: value for name, value in train.items() if name != "batch_size"}
    return kept


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
