"""How long ``layout_of`` takes for each family: ``python -m bench.layouts``.

The families' tiny models of ``tests/families`` with their own processors; two photographs' sizes in one prompt, so that
tiles are many. The median of many calls on one thread, the first (which learns the processor's chat template) left out.
"""

from __future__ import annotations

import statistics
import sys
import time

import torch

import bench  # noqa: F401  (puts the tests' folder on the path)

_CALLS = 40


def main() -> None:
    """Measure all families and print a table in Markdown."""
    import families
    from conftest_models import PROMPT, picture

    import tam_fast
    from tam_fast.models.families import FAMILIES
    from tam_fast.models.inputs import prepare_inputs

    torch.set_num_threads(1)
    groups: dict[str, list[tuple[float, int, str]]] = {}
    for name in families.builders():
        try:
            built = families.build(name)
            sizes = [(640, 427), (427, 640)]
            images = [picture(*size) for size in sizes]
            found = prepare_inputs(built.model, built.processor, images, PROMPT)
        except Exception as error:  # those of one image, or without a class here
            print(f"{name}: {type(error).__name__}: {str(error)[:100]}", file=sys.stderr)
            continue
        inputs = {"input_ids": found.input_ids[None], **found.inputs}
        seconds = []
        for _ in range(_CALLS):
            begin = time.perf_counter()
            tam_fast.layout_of(built.model.config, built.processor, inputs, sizes)
            seconds.append(time.perf_counter() - begin)
        group = FAMILIES[name.partition(".")[0]].group
        cells = found.layout.offsets[-1]
        groups.setdefault(group, []).append((1e3 * statistics.median(seconds[1:]), cells, name))
    print("| layout | families | median of medians, ms | slowest, ms | its cells |")
    print("|---|---:|---:|---:|---:|")
    for group, rows in groups.items():
        slowest, cells, name = max(rows)
        middle = statistics.median(row[0] for row in rows)
        print(f"| {group} | {len(rows)} | {middle:.2f} | {slowest:.2f} (`{name}`) | {cells:,} |")


if __name__ == "__main__":
    main()
