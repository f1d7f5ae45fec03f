"""The tables of docs/gpu.md, made of what benchmarks.speed.gpu found."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Result = Mapping[str, Any]

PASSES = ("fast", "batch-invariant", "diffusers", "compiled", "diffusers, compiled")


def write_page(page: Path, results: Sequence[Result]) -> None:
    """Fills the page's tables, which are between <!-- table NAME --> and <!-- end -->.

    Raises:
        ValueError: the page has no place for one of the tables.
    """
    text = page.read_text()
    for name, lines in tables(results).items():
        place = re.compile(rf"(<!-- table {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        if not place.search(text):
            raise ValueError(f"{page} has no <!-- table {name} --> with an <!-- end -->")
        filled = "".join(f"{line}\n" for line in lines).replace("\\", r"\\")
        text = place.sub(rf"\g<1>{filled}\g<2>", text)
    page.write_text(text)


def tables(results: Sequence[Result]) -> dict[str, list[str]]:
    """The lines of each table."""
    return {
        "machine": _machine(results),
        "passes": _passes(results),
        "equal bits": _equal_bits(results),
        "offload": _ways(results, "offload") + _offload_bits(results),
        "attention": _ways(results, "attention"),
        "small pictures": _ways(results, "small pictures"),
    }


def _of(results: Sequence[Result], part: str) -> list[Result]:
    return [result for result in results if result["part"] == part]


def _machine(results: Sequence[Result]) -> list[str]:
    lines = [
        f"{one['device']}, torch {one['torch']}, {one['dtype'].removeprefix('torch.')}: a product of two "
        f"square matrices reaches {one['matmul_flops'] / 1e12:.3g} TFLOP/s"
        for one in _of(results, "machine")
    ]
    failed = [f"- {one['part']} {_described(one)}: {one['failed']}" for one in results if "failed" in one]
    return [*lines, *(["", "What failed:", "", *failed] if failed else [])]


def _described(result: Result) -> str:
    return ", ".join(str(result[name]) for name in ("model", "way", "rows") if name in result)


def _passes(results: Sequence[Result]) -> list[str]:
    """Milliseconds a row by way; the share of the peak is that of the fastest of ours."""
    peak = next((one["matmul_flops"] for one in _of(results, "machine")), None)
    flops = {one["model"]: one["flops"] for one in _of(results, "weights")}
    timed = {(one["model"], one["rows"], one["way"]): one for one in _of(results, "passes")}
    lines = [
        f"| model | rows | {' | '.join(f'{way}, ms a row' for way in PASSES)} | share of the peak | GB |",
        "|---" * (len(PASSES) + 4) + "|",
    ]
    for model, rows in sorted({(model, rows) for model, rows, _ in timed}):
        cells = [_milliseconds(timed.get((model, rows, way)), rows) for way in PASSES]
        own = [timed.get((model, rows, way), {}) for way in ("fast", "compiled")]
        quickest = min((one["seconds"] for one in own if "seconds" in one), default=None)
        known = peak and quickest and model in flops
        share = f"{rows * flops[model] / quickest / peak:.2f}" if known else ""
        memory = f"{own[0]['memory_gb']:.1f}" if own[0].get("memory_gb") else ""
        lines.append(f"| {model} | {rows} | {' | '.join(cells)} | {share} | {memory} |")
    return lines


def _milliseconds(result: Result | None, rows: int) -> str:
    if result is None:
        return ""
    return "failed" if "failed" in result else f"{1000 * result['seconds'] / rows:.3g}"


def _equal_bits(results: Sequence[Result]) -> list[str]:
    """What the promise costs, and how many rows keep it in one pass."""
    timed = {
        (one["model"], one["rows"], one["way"]): one["seconds"]
        for one in _of(results, "passes")
        if "seconds" in one
    }
    kept = {one["model"]: one for one in _of(results, "invariant")}
    lines = [
        "| model | rows | batch-invariant / fast | rows in a pass | sizes mix |",
        "|---|---|---|---|---|",
    ]
    for model, rows, way in sorted(timed):
        fast = timed.get((model, rows, "fast"))
        if way == "batch-invariant" and fast is not None:
            one = kept[model]
            ratio = timed[model, rows, way] / fast
            mixes = "yes" if one["mixes"] else "no"
            lines.append(f"| {model} | {rows} | {ratio:.2f} | {one['rows']} | {mixes} |")
    return lines


def _ways(results: Sequence[Result], part: str) -> list[str]:
    lines = ["| model | way | rows | ms a row | GB |", "|---|---|---|---|---|"]
    for one in _of(results, part):
        rows = one.get("rows", 1)
        memory = f"{one['memory_gb']:.1f}" if one.get("memory_gb") else ""
        cells = (
            one.get("model", ""),
            one.get("way", ""),
            one.get("rows", ""),
            _milliseconds(one, rows),
            memory,
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def _offload_bits(results: Sequence[Result]) -> list[str]:
    said = {True: "The bits are the same.", False: "The bits differ."}
    return [line for one in _of(results, "offload bits") for line in ("", said[one["same"]])]
