"""Distillation of a student from a crawl, in Python."""

import kd3

pool = kd3.ingest("crawl/", "clean", image_size=32, dedup="near", keep_out=["test/"])
run = kd3.distill("teacher.yaml", "kd3:resnet8", pool, "runs/a", images="2k")
print(f"agrees with the teacher on {run.agreement:.1f}% of held-out web images")
print(kd3.evaluate("runs/a", "test/", teacher="teacher.yaml"))
