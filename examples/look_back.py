"""One page on two runs, side by side."""

import kd3

pool = kd3.ingest("crawl/", "pool", image_size=32)
for method in ("kd3", "kd"):
    kd3.distill("teacher.yaml", "kd3:resnet8", pool, f"runs/{method}", method=method, images=640)
print(kd3.report(["runs/kd3", "runs/kd"], out="both.html"))
