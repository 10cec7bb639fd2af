"""How far is this crawl from what the teacher learned, and what of it would be kept?"""

import kd3

pool = kd3.ingest("crawl/", "pool", image_size=32)
shift = kd3.shift("teacher.yaml", pool, reference="test/")
print(shift.measurement.verdict.sentence)
selection = kd3.select("teacher.yaml", pool, "selection")
print(f"{len(selection.positions)} of {len(pool)} images kept; pictures in {selection.folder}/grids")
