#!/usr/bin/env python3
"""Draws kvbench's rates: share of the copy engine's rate over thread blocks, a line for each size of pages.

usage: plot.py FIGURES.json OUT.svg     FIGURES.json: what kvbench printed, of one run
"""

import json
import sys

WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 720, 400, 60, 40, 230, 50
COLOURS = ["#1b6ca8", "#c0392b", "#2e8b57", "#8e44ad", "#d68910", "#5d6d7e"]


def read_figures(path):
    with open(path, encoding="utf-8") as file:
        figures = [json.loads(line) for line in file if line.startswith("{")]
    lines = {}
    for figure in figures:
        if "rate" in figure and figure["method"].startswith("kernel, "):
            blocks = int(figure["method"].split()[1])
            label = f"{figure['pages']:,} of {figure['page_bytes']:,} B"
            lines.setdefault(label, []).append((blocks, figure["of_copy_engine"]))
    if not lines:
        sys.exit(f"{path}: no rates by kernel; run kvbench rates")
    machine = next((figure["device"] for figure in figures if "device" in figure), "unknown device")
    reference = next((figure["GB/s"] for figure in figures if "message_bytes" in figure), float("nan"))
    return machine, reference, lines


def draw(machine, reference, lines):
    widest = max(blocks for points in lines.values() for blocks, _ in points)
    x = lambda blocks: LEFT + blocks / widest * (WIDTH - LEFT - RIGHT)
    y = lambda share: HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="20">{machine}: share of the copy engine\'s {reference:.1f} GB/s, by thread blocks</text>',
    ]
    for share in (0, 0.25, 0.5, 0.75, 1):
        out.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(share)}" y2="{y(share)}" stroke="#ddd"/>')
        out.append(f'<text x="{LEFT - 8}" y="{y(share) + 4}" text-anchor="end">{share:g}</text>')
    for blocks in sorted({blocks for points in lines.values() for blocks, _ in points}):
        out.append(f'<text x="{x(blocks)}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{blocks}</text>')
    for index, (label, points) in enumerate(lines.items()):
        colour = COLOURS[index % len(COLOURS)]
        path = " ".join(f"{x(blocks):.1f},{y(share):.1f}" for blocks, share in sorted(points))
        out.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        out.append(f'<text x="{WIDTH - RIGHT + 12}" y="{TOP + 20 + 18 * index}" fill="{colour}">{label}</text>')
    return "\n".join(out + ["</svg>", ""])


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    with open(sys.argv[2], "w", encoding="utf-8") as file:
        file.write(draw(*read_figures(sys.argv[1])))


if __name__ == "__main__":
    main()
