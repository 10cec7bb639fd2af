"""Your own study: two methods, two batch sizes, one table."""

from pathlib import Path

import kd3

Path("sizes.yaml").write_text(
    "title: Batch sizes\nimages: 640\nseeds: [0]\ndial: images in a batch\nrows:\n"
    "  - {name: KD, settings: {method: kd}, vary: {train.batch_size: [16, 32]}}\n"
)
kd3.ingest("crawl/", "pool", image_size=32)
kd3.study("sizes.yaml", "sizes", teacher="teacher.yaml", student="kd3:resnet8", pool="pool")
print(Path("sizes/table.md").read_text())
