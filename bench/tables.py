"""The figures as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from bench.peers import FP32, INT8, TOLERANCES
from bench.targets import figures

BUSY = 1.0

Parts = dict[str, Any]
SHOWN_ENGINES = ("hashinfer", FP32, INT8)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    head = ["| " + " | ".join(columns) + " |", "|" + "|".join(["---", *["--:"] * (len(columns) - 1)]) + "|"]
    return "\n".join([*head, *("| " + " | ".join(row) + " |" for row in rows)])


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} GiB"


def duration(us: float) -> str:
    """Microseconds for people."""
    if us < 1000:
        return f"{us:.3g} us" if us < 999.5 else "1 ms"
    return f"{us / 1000:.3g} ms" if us < 1e6 else f"{us / 1e6:.3g} s"


def report(parts: Parts) -> str:
    """Everything but the long kernel table."""
    texts = [f"# Measured\n\n{where(parts)}"]
    if found := figures(parts):
        rows = [(f.what, f.target, f.measured, {True: "yes", False: "**no**", None: ""}[f.reached]) for f in found]
        texts.append("## Figures to reach\n\n" + table(("figure", "target", "measured", "reached"), rows))
    if "nets" in parts:
        texts.append(_nets(parts["nets"]))
    if "memory" in parts:
        texts.append(_memory(parts["memory"]))
    if "growth" in parts:
        texts.append(_growth(parts["growth"]))
    if "kernels" in parts:
        texts.append(_kernel_summary(parts["kernels"]))
    return "\n\n".join(texts) + "\n"


def where(parts: Parts) -> str:
    """On what, and when a part of it was not the full run."""
    lines = []
    for text, names in _grouped(parts).items():
        lines.append(f"{', '.join(names)}: {text}")
    return "\n\n".join(lines)


def _grouped(parts: Parts) -> dict[str, list[str]]:
    out: dict[str, list[str]] = {}
    for name, part in parts.items():
        e = part["environment"]
        versions = ", ".join(f"{k} {v}" for k, v in e["versions"].items())
        quick = " Quick run: fewer cases and repeats." if part["quick"] else ""
        text = (
            f"{e['cpu']}, {e['kernels_use']} kernels, {e['processors']} processors; Python {e['python']}, {versions}."
        )
        busy = part.get("load_before")
        load = "" if busy is None or busy < BUSY else " The machine was busy before: load average over one."
        out.setdefault(text + quick + load, []).append(name)
    return out


def _nets(part: dict[str, Any]) -> str:
    allowed = ", ".join(f"{name} {limit:g}" for name, limit in TOLERANCES.items())
    head = "Median time of a run, and how many times faster than the dense twin in onnxruntime fp32 / int8"
    rule = f"(median of the ratios round by round). Largest error allowed, over the largest output: {allowed}."
    texts = [f"## Nets\n\n{head} {rule}"]
    for net in part["nets"]:
        for threads in sorted({case["threads"] for case in net["cases"]}):
            cases = [case for case in net["cases"] if case["threads"] == threads]
            columns = ("engine", "file", *(f"batch {case['batch']}" for case in cases))
            rows = []
            for label, about in net["variants"].items():
                rows.append((label, size(about["file_bytes"]), *(_ours(case, label) for case in cases)))
            for peer in net["peers"]:
                file = size(net["dense_bytes"]) if peer == FP32 else ""
                rows.append((peer, file, *(_theirs(case, peer, net["peers"][peer]) for case in cases)))
            heading = f"### {net['net']}, {threads} thread{'s' if threads > 1 else ''}"
            texts.append(f"{heading}\n\n" + table(columns, rows))
            if threads > 1:
                gains = [(v, *(_gain(case, v) for case in cases)) for v in net["variants"]]
                texts.append(
                    f"{threads} threads over one, in turn (alone: too short to share, so both run on one thread):\n\n"
                    + table(("engine", *(f"batch {case['batch']}" for case in cases)), gains)
                )
        texts += [f"Left out: {line}." for line in net.get("left_out", [])]
    if "overhead" in part:
        rows = [(name, f"{spread['median']:.1f} us") for name, spread in part["overhead"].items()]
        texts.append("### A graph of one Relu over 16 numbers\n\n" + table(("call", "time"), rows))
    return "\n\n".join(texts)


def _ours(case: dict[str, Any], label: str) -> str:
    if label not in case["us"]:
        return f"left out, {case['left_out'].get(label, 'not measured')}"
    faster = case["faster"].get(label, {})
    found = [f"{faster[peer]['median']:.3g}" if peer in faster else "-" for peer in (FP32, INT8)]
    return f"{duration(case['us'][label]['median'])}: {' / '.join(found)} x"


def _theirs(case: dict[str, Any], peer: str, about: dict[str, Any]) -> str:
    if "absent" in about:
        return about["absent"]
    if peer not in case["us"]:
        return f"left out, {case['left_out'].get(peer, 'not measured')}"
    return duration(case["us"][peer]["median"])


def _gain(case: dict[str, Any], label: str) -> str:
    found = case["more_threads"].get(label)
    alone = ", alone" if label in case["alone"] else ""
    return f"{found['median']:.2f} x{alone}" if found else "-"


def _memory(part: dict[str, Any]) -> str:
    rows = []
    for model in part["models"]:
        for engine, m in model["engines"].items():
            rows.append(
                (
                    f"{model['net']}, {model['variant'] if engine == 'hashinfer' else 'dense'}, {engine}",
                    size(m["file_bytes"]),
                    size(m["weight_bytes"]) if "weight_bytes" in m else "",
                    size(m["plan_bytes"]) if "plan_bytes" in m else "",
                    size(m["floor"]["rss"]),
                    size(m["resident_after_load"]),
                    size(m["resident_after_run"]),
                    size(m["peak_over_floor"]),
                    size(m["another_session"]),
                )
            )
    columns = (
        "model, engine",
        "file",
        "weights",
        "plan",
        "engine floor",
        "after load",
        "after a run",
        "peak",
        "a second session",
    )
    return (
        "## Memory\n\nOne thread, batch 1, fresh processes. Engine floor: resident memory after the import. After load "
        "and after a run: anonymous memory over the floor's. Peak: of resident memory, over the floor. "
        "A second session of the same model adds the model alone, without compiled code.\n\n" + table(columns, rows)
    )


def _growth(part: dict[str, Any]) -> str:
    curves = list(part["widths"][0]["us"])
    rows = []
    for entry in part["widths"]:
        cells = [f"{duration(entry['us'][c]['median'])}, {size(entry['bytes'][c])}" for c in curves]
        rows.append((str(entry["width"]), *cells))
    return (
        "## Growth\n\nx [1, n] @ W [n, n], one thread: time of a run; bytes of weights, spectra and buffers.\n\n"
        + table(("n", *curves), rows)
    )


def _kernel_summary(part: dict[str, Any]) -> str:
    peaks = part["limits"]
    rows = [
        (name.replace("_", " "), f"{value / 1e9:.3g} G{'B' if name.endswith('read') else ''}/s")
        for name, value in peaks.items()
    ]
    picked: dict[tuple[str, str], list[tuple[float, float, str]]] = {}
    for entry in part["cases"]:
        k = entry["kernels"].get(entry["picked"])
        if k and not entry["zeros"]:
            seen = picked.setdefault((entry["scheme"], entry["picked"]), [])
            seen.append((k["virtual_per_second"] / 1e9, k["share"], k["unit"]))
    best = []
    for (scheme, kernel), seen in picked.items():
        rate, _, _ = max(seen)
        share, unit = max((s, u) for _, s, u in seen)
        best.append(
            (
                f"{scheme}, {kernel}",
                str(len(seen)),
                f"{rate:.0f} G/s" if rate >= 100 else f"{rate:.3g} G/s",
                f"{100 * share:.0f} % of {unit}",
            )
        )
    columns = ("kernel picked", "cases", "most virtual weights", "largest share of a limit")
    skipped = f"\n\nLeft out: {len(part['left_out'])} slow cases, listed in kernels.md." if part["left_out"] else ""
    return (
        "## Kernels\n\nThis machine's peaks, one thread:\n\n"
        + table(("peak", "rate"), rows)
        + "\n\nAll cases are in kernels.md. The planner's picks, no zero inputs:\n\n"
        + table(columns, best)
        + skipped
    )


def kernel_cases(parts: Parts) -> str:
    """Every case and kernel."""
    part = parts["kernels"]
    rows = []
    for entry in part["cases"]:
        case = f"{entry['shape'][0]} x {entry['shape'][1]}, {entry['scheme']} {entry['compression']}"
        cells = []
        for name, k in entry["kernels"].items():
            mark = "**" if name == entry["picked"] else ""
            rate = f"{k['virtual_per_second'] / 1e9:.3g} G/s, {100 * k['share']:.0f} % of {k['unit']}"
            cells.append(f"{mark}{name}{mark} {duration(k['us']['median'])}, {rate}")
        over = entry["picked_over_fastest"]
        rows.append(
            (
                case,
                str(entry["rows"]),
                f"{100 * entry['zeros']:.0f} %",
                "; ".join(cells),
                "-" if over is None else f"{over:.2f}",
            )
        )
    columns = ("W", "rows", "zero inputs", "kernels (the planner's pick in bold)", "pick over fastest")
    left_out = "".join(f"\n- {line}" for line in part["left_out"])
    return (
        f"# Kernels\n\n{where({'kernels': part})}\n\nEach kernel of a hashed product alone, one thread: median time, "
        "virtual weights a second, and the time that its busiest unit would need at this machine's peak, as a share of "
        "the time taken. Zero inputs that a kernel skips do not count towards its share; the planner does not know how "
        f"many inputs are zero.\n\n{table(columns, rows)}\n"
        + (f"\nLeft out, as slower than a call may be here:\n{left_out}\n" if left_out else "")
    )
