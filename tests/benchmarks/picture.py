"""The README's picture: a run's sharing tree with each peer's channels, accuracy and measured speed-up, as SVG.

python tests/benchmarks/picture.py runs/NAME docs/family.svg      (after wmlc bench)
"""

from __future__ import annotations

import sys
from pathlib import Path

from wmlc.records import Family, Row
from wmlc.report.runs import read_bench
from wmlc.run import BASELINE, Run, read_family

COLUMN, ROW, TOP, LEFT, THICK = 128, 74, 46, 16, 46  # pixels; THICK: a stage at full width
INK, FAINT, SHARED, PRIVATE = "#1f2933", "#7b8794", "#4c7fb8", "#e0912f"


def draw(family: Family, rows: dict[int, Row]) -> str:
    """One box a branch of the tree, as high as its share of the full network's channels."""
    peers = family.peers
    stages = list(dict.fromkeys(branch.stage for branch in family.tree if branch.stage != "head"))
    full = peers[-1].stage_channels  # the unpruned peer's are the baseline's
    centre = {b.name: TOP + ROW * (sum(b.peers) / len(b.peers) - 0.5) for b in family.tree}
    lines, boxes = [], []
    for branch in family.tree:
        if branch.stage == "head":
            continue
        x, y = LEFT + COLUMN * stages.index(branch.stage), centre[branch.name]
        channels = peers[branch.peers[-1] - 1].stage_channels[branch.stage]
        height = THICK * sum(channels) / sum(full[branch.stage])
        if branch.parent:
            lines.append(
                f'<path d="M{x - COLUMN + 88},{centre[branch.parent]} C{x - 16},{centre[branch.parent]} {x - 24},{y} {x},{y}"/>'
            )
        colour = SHARED if len(branch.peers) > 1 else PRIVATE
        span = f"{min(channels)}–{max(channels)}" if min(channels) < max(channels) else f"{channels[0]}"
        boxes.append(
            f'<rect x="{x}" y="{y - height / 2:.1f}" width="88" height="{height:.1f}" rx="3" fill="{colour}"/>'
        )
        boxes.append(f'<text x="{x + 44}" y="{y + 4}" text-anchor="middle" fill="white">{span}</text>')
    end = LEFT + COLUMN * len(stages)
    heads = [
        f'<text x="{LEFT + COLUMN * i + 44}" y="24" text-anchor="middle" fill="{FAINT}">{s}</text>'
        for i, s in enumerate(stages)
    ]
    for peer in peers:
        row, y = rows[peer.peer], TOP + ROW * (peer.peer - 0.5)
        lines.append(f'<path d="M{end - COLUMN + 88},{y} H{end - 8}"/>')
        heads.append(
            f'<text x="{end}" y="{y - 9}" fill="{INK}" font-weight="bold">peer {peer.peer}: {row.top1:.1f} % top-1</text>'
            f'<text x="{end}" y="{y + 9}" fill="{INK}">{row.params / 1e3:,.0f} k parameters, {row.macs / 1e6:,.1f} M MACs</text>'
            f'<text x="{end}" y="{y + 26}" fill="{INK}">{row.speedup.median:.2f} × the baseline\'s speed</text>'
        )
    width, height = end + 220, TOP + ROW * len(peers) + 44
    said = (
        "blue: shared, runs once; orange: a peer's own; height: channels kept; number: channels, narrowest–widest layer",
        f"speed: ONNX Runtime, batch 1, against the unpruned baseline, which has {rows[BASELINE].top1:.1f} % top-1",
    )
    caption = "".join(
        f'<text x="{LEFT}" y="{height - 26 + 17 * line}" fill="{FAINT}" font-size="12">{text}</text>'
        for line, text in enumerate(said)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="13">'
        f'<rect width="{width}" height="{height}" fill="white"/><g fill="none" stroke="{FAINT}" stroke-width="1.5">{"".join(lines)}</g>'
        f"{''.join(boxes)}{''.join(heads)}{caption}</svg>\n"
    )


def main() -> None:
    """Read a run and its bench, and write the picture."""
    run, out = Run(Path(sys.argv[1])), Path(sys.argv[2])
    rows = {
        row.peer: row for row in read_bench(run).rows if (row.batch, row.engine, row.precision) == (1, "ort", "fp32")
    }
    out.write_text(draw(read_family(run), rows), encoding="utf-8")


if __name__ == "__main__":
    main()
