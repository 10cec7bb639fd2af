"""Markdown page of the results."""

from __future__ import annotations

from typing import Any

from benchmarks.targets import Results, figures


def markdown(machine: dict[str, Any], material: str, results: Results) -> str:
    """Return the page: the figures and their targets, then every group's own table."""
    lines = [f"# Benchmarks, {machine['date'][:10]}", "", _where(machine, material), ""]
    rows = [
        f"| {f.name} | {f.value:.3g}{f.unit} | {'at least' if f.at_least else 'at most'} {f.target:g}{f.unit} "
        f"| {'yes' if f.met else '**no**'} |"
        for f in figures(results)
    ]
    if rows:
        lines += ["| figure | measured | target | met |", "|---|---|---|---|", *rows, ""]
    for group, result in results.items():
        lines += [f"## {group}", "", *_table(group, result), ""]
    return "\n".join(lines)


def _where(machine: dict[str, Any], material: str) -> str:
    return (
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB; {machine['compute']}, "
        f"{machine['torch_threads']} threads; torch {machine['torch']}, Python {machine['python']}, "
        f"Pillow {machine['pillow']}, kd3 {machine['kd3']} ({machine['commit']}); {material}. "
        f"Command: `{machine['command'].strip()}`. Rates are medians of turns taken side by side."
    )


def _table(group: str, result: dict[str, Any]) -> list[str]:
    if group == "epoch":
        rows: dict[str, Any] = {f"epoch {n}": e for n, e in enumerate(result["epochs"], 1)}
    elif group == "memory":
        rows = result["peaks"]
    else:
        rows = result
    columns = list(next(iter(rows.values())))
    head = [
        "| | " + " | ".join(column.replace("_", " ") for column in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    return head + [f"| {name} | " + " | ".join(_number(row[c]) for c in columns) + " |" for name, row in rows.items()]


def _number(value: Any) -> str:
    if isinstance(value, list):
        return str(len(value))
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"
