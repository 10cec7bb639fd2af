"""Distillation of features by LightlyTrain 0.18, then a linear classifier that learns the teacher's predictions.

`python with_lightly_train.py --teacher WEIGHTS --crawl FOLDER --images N --seed S --out OUT`. FOLDER has one folder of
images in it. OUT/student.pt gets the student's weights. The method, `distillationv3`, its optimizer, augmentation and
batch of 128 are LightlyTrain's defaults; only the image size is the teacher's, 32, instead of 224. No labels: the
classifier learns the teacher's probabilities on the same images, seen once more without augmentation.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import lightly_train
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import transforms

from kd3.models.zoo.resnets import ResNetCifar


class Wrapped(nn.Module):
    """A network as LightlyTrain asks for it: its feature map (B, 64, 8, 8) and the pooled one (B, 64, 1, 1)."""

    def __init__(self, network: ResNetCifar) -> None:
        super().__init__()
        self.network = network

    def get_model(self) -> nn.Module:
        """Return the network to be saved."""
        return self.network

    def forward_features(self, images: Tensor) -> dict[str, Tensor]:
        """Return the map before the classifier."""
        network = self.network
        stem = torch.relu(network.bn1(network.conv1(images)))
        return {"features": network.layer3(network.layer2(network.layer1(stem)))}

    def forward_pool(self, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the pooled map."""
        return {"pooled_features": outputs["features"].mean(dim=(2, 3), keepdim=True)}

    def feature_dim(self) -> int:
        """Return the number of channels."""
        return 64

    def architecture_info(self) -> dict[str, str]:
        """Return the kind of network, which decides its weight decay."""
        return {"model_type": "convolutional", "norm_type": "batchnorm"}


def train_classifier(student: ResNetCifar, teacher: ResNetCifar, files: list[Path]) -> None:
    """Fit the student's linear layer to the teacher's probabilities (L-BFGS on all images at once)."""
    plain = transforms.Compose(
        [
            transforms.Resize(32),
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    backbone, teacher = Wrapped(student).eval(), teacher.eval()
    features, targets = [], []
    with torch.no_grad():
        for start in range(0, len(files), 128):
            images = torch.stack([plain(Image.open(file).convert("RGB")) for file in files[start : start + 128]])
            features.append(backbone.forward_pool(backbone.forward_features(images))["pooled_features"].flatten(1))
            targets.append(teacher(images).softmax(dim=1))
    inputs, wanted = torch.cat(features), torch.cat(targets)
    optimizer = torch.optim.LBFGS(student.linear.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = nn.functional.cross_entropy(student.linear(inputs), wanted)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]


def main(arguments: argparse.Namespace) -> None:
    """Train a student and save it."""
    random.seed(arguments.seed)
    torch.manual_seed(arguments.seed)
    teacher = ResNetCifar(num_classes=10, depth=56)
    teacher.load_state_dict(torch.load(arguments.teacher, weights_only=True)["state_dict"])
    student = ResNetCifar(num_classes=10, depth=20)
    files = random.sample(sorted(arguments.crawl.glob("*/*.jpg")), arguments.images)
    lightly_train.pretrain(
        out=arguments.out / "lightly_train",
        data=[str(file) for file in files],
        model=Wrapped(student),
        method="distillationv3",
        method_args={"teacher": Wrapped(teacher)},
        transform_args={"image_size": (32, 32)},
        epochs=1,
        num_workers=0,
        accelerator="cpu",
        devices=1,
        seed=arguments.seed,
    )
    train_classifier(student, teacher, files)
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
