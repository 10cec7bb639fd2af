"""Your own networks: any nn.Module that maps images to logits."""

import kd3
from kd3.models.arch import build_arch

network = build_arch("kd3:resnet14", num_classes=3)  # stands for your trained classifier
teacher = kd3.Teacher(network, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), input_size=32)
student = build_arch("kd3:resnet8", num_classes=3)  # stands for your small one
pool = kd3.ingest("crawl/", "pool", image_size=32)
run = kd3.distill(teacher, student, pool, "runs/live", images="1k", method="kd")
print(run.agreement)
