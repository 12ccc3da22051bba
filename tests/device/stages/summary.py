"""All results as a page of text."""

import json

MARKS = ("TFLOP", "until", "recorded", "marked")
ENDS = ("_ms", " ms", "ms 512", "ms 256", "_us", "TB_s")
TOOLS = ("memcheck", "racecheck", "synccheck")


def summary(results: dict[str, dict]) -> str:
    lines = [f"{'variant':44s} {'step ms':>9s} {'edit s':>8s} {'first s':>8s} {'GB':>6s} {'error':>9s} {'PSNR':>6s}"]
    rows = [(name, row) for entry in results.values() for name, row in entry.items()]
    for name, row in rows:
        if isinstance(row, dict) and "edit_s" in row:
            lines.append(
                f"{name:44s} {row['step_ms']:9.2f} {row['edit_s']:8.3f} {row['first_edit_s']:8.2f} "
                f"{row.get('reserved_GB', 0):6.2f} {row.get('latents_error', float('nan')):9.1e} "
                f"{row.get('psnr_db', float('nan')):6.1f}"
            )
    for name, row in rows:
        if name.endswith(ENDS) or name in TOOLS or any(mark in name for mark in MARKS):
            lines.append(f"{name}: {json.dumps(row, default=str)[:300]}")
    for name, row in rows:
        if isinstance(row, dict) and "launches" in row:
            lines.append(f"{name}: {row['launches']} launches, busy {row['busy_ms']:.2f} ms, {row['kinds_ms']}")
    lines.append("stages: " + ", ".join(f"{name} {entry['state']}" for name, entry in results.items()))
    return "\n".join(lines)
