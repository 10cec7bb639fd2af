"""The section on asking the teacher: the curve, the thresholds, calibration by the teacher's answers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from kd3.measure.calibration import Bin
from kd3.run_report.charts import Line, line_chart
from kd3.run_report.lost import reliability_chart
from kd3.runs.cascade import images_in_words, in_words
from kd3.runs.folder import RunFolder


def of_run(folder: RunFolder, record: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return the stored record of `kd3 cascade` for a run's student; None if missing, or for another student."""
    if record is None or not folder.cascade.is_file():
        return None
    try:
        kept: dict[str, Any] = json.loads(folder.cascade.read_text(encoding="utf-8"))
        if any(kept[name] != value for name, value in record.items()):
            return None
        section(kept)
    except (OSError, ValueError, KeyError, TypeError):  # damaged: recomputed from the pool, if available
        return None
    return kept


def section(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return the section for the template, from the record with its curve and bins."""
    confidence = f"{found['confidence']:g} %"
    met = [one for one in found["thresholds"] if one["margin"] is not None]
    curve = [
        Line(name, [(point["escalated"], point[key]) for point in found["curve"]])
        for name, key in (("on these images", "agreement"), (f"at least, at {confidence} confidence", "promised"))
    ]
    marks = Line("thresholds", [(one["escalated"], one["reached"]) for one in met])
    bins = {name: [Bin(**one) for one in rows] for name, rows in found["reliability"].items()}
    rows = [
        [f"{one['agreement']:g} %", f"{one['escalated']:.1f} %", f"{one['margin']:.3f}"]
        if one["margin"] is not None
        else [f"{one['agreement']:g} %", "no threshold", one["problem"]]
        for one in found["thresholds"]
    ]
    return {
        "lead": f"On {images_in_words(found)} the student agrees with its teacher on {found['agreement_alone']:.1f} %. "
        "Where the student is not sure, the teacher can be asked.",
        "words": in_words(found),
        "rows": rows,
        "confidence": confidence,
        "charts": [
            line_chart("Agreement of the cascade", [*curve, marks], x="percent of images to the teacher", y="percent"),
            reliability_chart("Calibration by the teacher", bins, y="percent agreed"),
        ],
    }
