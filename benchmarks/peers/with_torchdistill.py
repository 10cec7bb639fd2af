"""Plain distillation by torchdistill 1.1.5, with its own sample settings for CIFAR-10 (SGD, batch 64, temperature 4).

`python with_torchdistill.py --teacher WEIGHTS --crawl FOLDER --images N --seed S --out OUT`. FOLDER has one folder of
images in it. OUT/student.pt gets the student's weights. Differs from the sample settings: no labels, so alpha is 0, and
KDLoss then leaves out the factor of temperature squared, which the term's weight puts back; the milestones, half and
three quarters of the sample's 182 epochs, are the same parts of this budget.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch.utils.data import RandomSampler
from torchdistill.common.main_util import set_seed
from torchdistill.core.distillation import get_distillation_box
from torchvision import transforms
from torchvision.datasets import ImageFolder

from kd3.models.zoo.resnets import ResNetCifar


def main(arguments: argparse.Namespace) -> None:
    """Train a student and save it."""
    set_seed(arguments.seed)
    teacher = ResNetCifar(num_classes=10, depth=56)
    teacher.load_state_dict(torch.load(arguments.teacher, weights_only=True)["state_dict"])
    teacher.eval()  # torchdistill leaves the teacher in the mode that it finds
    student = ResNetCifar(num_classes=10, depth=20)
    view = transforms.Compose(
        [
            transforms.Resize(32),
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    steps = arguments.images // 64
    outputs = dict.fromkeys(("student_module_path", "teacher_module_path"), ".")
    outputs |= dict.fromkeys(("student_module_io", "teacher_module_io"), "output")
    divergence = {"key": "KDLoss", "kwargs": {**outputs, "temperature": 4.0, "alpha": 0, "reduction": "batchmean"}}
    settings = {
        "num_epochs": 1,
        "train_data_loader": {
            "dataset_id": "crawl",
            "sampler": {"class_or_func": RandomSampler, "kwargs": {"num_samples": steps * 64}},
            "kwargs": {"batch_size": 64, "num_workers": 0},
        },
        "teacher": {"forward_proc": "forward_batch_only", "requires_grad": False},
        "student": {"forward_proc": "forward_batch_only"},
        "optimizer": {"key": "SGD", "kwargs": {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4}},
        "scheduler": {
            "key": "MultiStepLR",
            "kwargs": {"milestones": [steps // 2, steps * 3 // 4], "gamma": 0.1},
            "scheduling_step": 1,
        },
        "criterion": {
            "key": "WeightedSumLoss",
            "kwargs": {"sub_terms": {"kd": {"criterion": divergence, "weight": 4.0**2}}},
        },
    }
    crawl = {"crawl": ImageFolder(arguments.crawl, view)}
    box = get_distillation_box(teacher, student, crawl, settings, torch.device("cpu"), None, False, 1)
    box.pre_epoch_process(epoch=0)
    for images, targets, extra in box.train_data_loader:
        box.post_forward_process(loss=box.forward_process(images, targets, extra))
    box.post_epoch_process()
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.save(student.state_dict(), arguments.out / "student.pt")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--crawl", type=Path, required=True)
    parser.add_argument("--images", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    return parser


if __name__ == "__main__":
    main(parser().parse_args())
