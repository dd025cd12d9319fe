"""The curves of `scaling` as pictures."""

import re
from collections.abc import Sequence
from pathlib import Path

from benchmarks._results import Kept


def draw(results: Sequence[Kept], folder: Path) -> None:
    """One PNG for each curve, named after its title: time and temporary memory over the size, both axes logarithmic."""
    from matplotlib.figure import Figure  # only for who asks for pictures

    for result in results:
        if result.benchmark != "scaling":
            continue
        points = result.numbers["points"]
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        times, memory = figure.subplots(1, 2)
        for name in points[0]["costs"]:
            sizes, costs = zip(*((point["size"], point["costs"][name]) for point in points), strict=True)
            lower, median, upper = ([cost["milliseconds"][quartile] for cost in costs] for quartile in ("lower", "median", "upper"))
            (line,) = times.plot(sizes, median, marker="o", label=name)
            times.fill_between(sizes, lower, upper, alpha=0.2, color=line.get_color())
            memory.plot(sizes, [max(cost["temp_bytes"] / 2**20, 1e-4) for cost in costs], marker="o", label=name)
        for axes, label in ((times, "ms, median and quartiles"), (memory, "temporaries, MiB (0 shown as 1e-4)")):
            axes.set(xscale="log", yscale="log", xlabel=result.numbers["along"], ylabel=label)
            axes.grid(alpha=0.3)
            axes.legend()
        figure.suptitle(result.title)
        figure.savefig(folder / f"{re.sub('[^a-z0-9]+', '-', result.title.lower()).strip('-')}.png", dpi=120)
