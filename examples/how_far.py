"""Distance of a crawl from the teacher's training data, and the images that would be selected."""

import kd3

pool = kd3.ingest("crawl/", "pool", image_size=32)
shift = kd3.shift("teacher.yaml", pool, reference="test/")
print(shift.measurement.verdict.sentence)
selection = kd3.select("teacher.yaml", pool, "selection")
print(f"{len(selection.positions)} of {len(pool)} images kept; pictures in {selection.folder}/grids")
