"""What explaining costs beside plain generation: time and peak memory of a Qwen2-VL with random weights.

The model is built from a config (2B's width and vocabulary, few layers), so that nothing is downloaded; the processor
and the photographs are real. Times: the ways take turns on the same images in one process, each time another one first;
of each image the best of the repeats counts, of processor time as well, which other processes disturb less. Memory: the
high-water mark of resident memory of a fresh process for each way, from picture to result, once the model is built and
has run once on a small image; the smallest of some such processes, for allocators scatter by some ten MiB.

    python bench/explain_cost.py --processor PROCESSOR_FOLDER --images PHOTOGRAPH_FOLDER
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

WAYS = ("generate", "explain", "stream", "given answer")
PROMPT = "Describe this image."
CELL = 28 * 28  # pixels of a visual token


def build(options: argparse.Namespace) -> tuple[Any, Any]:
    """Make the model of random weights and load the processor."""
    import torch
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    import tam_fast

    processor = tam_fast.load_processor(options.processor)
    heads = options.hidden // 128
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": options.vocabulary,
            "hidden_size": options.hidden,
            "intermediate_size": options.hidden * 35 // 6,
            "num_hidden_layers": options.layers,
            "num_attention_heads": heads,
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        },
        vision_config={"depth": options.vision_depth, "embed_dim": 320, "num_heads": 4, "hidden_size": options.hidden},
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, options.dtype))
    try:
        model = Qwen2VLForConditionalGeneration(config).eval()
    finally:
        torch.set_default_dtype(before)
    return model, processor


def load_image(path: str, tokens: int | None) -> Any:
    """Load a photograph as it is, or scaled to about so many visual tokens."""
    from PIL import Image

    image = Image.open(path).convert("RGB")
    if tokens is None:
        return image
    scale = (tokens * CELL / (image.width * image.height)) ** 0.5
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)


def runner(way: str, model: Any, processor: Any, options: argparse.Namespace) -> Callable[[Any], Any]:
    """Return a function of an image that does one thing from picture to result."""
    import torch

    import tam_fast

    explainer = tam_fast.Explainer(model, processor)
    settings = {"max_new_tokens": options.new_tokens, "min_new_tokens": options.new_tokens, "do_sample": False}
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": PROMPT}]}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)

    def generate(image: Any) -> Any:
        inputs = processor(images=[image], text=[text], return_tensors="pt")
        with torch.no_grad():
            ids = model.generate(**inputs, **settings)
        return processor.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :])

    def explain(image: Any) -> Any:
        return explainer.explain(image, PROMPT, **settings)

    def stream(image: Any) -> Any:
        steps = explainer.stream(image, PROMPT, **settings)
        for _ in steps:
            pass
        return steps.explanation

    def given(image: Any) -> Any:
        return explainer.explain(image, PROMPT, answer=list(range(1000, 1000 + options.new_tokens)))

    return dict(zip(WAYS, (generate, explain, stream, given), strict=True))[way]


def reset_high_water() -> None:
    """Let the peak of resident memory begin again, where the system can (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def high_water() -> float:
    """Peak resident memory of this process since the reset, or since its start where there is none; MiB."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def work(options: argparse.Namespace) -> dict[str, Any]:
    """Measure in this process, as `options.worker` says; images one after the other."""
    model, processor = build(options)
    images = [load_image(path, options.tokens) for path in options.images]
    if options.worker == "time":
        runs = {way: runner(way, model, processor, options) for way in WAYS}
        best = {way: [float("inf")] * len(images) for way in WAYS}
        best_cpu = {way: [float("inf")] * len(images) for way in WAYS}
        maps = [float("inf")] * len(images)
        cells = [0] * len(images)
        for way in WAYS:
            runs[way](load_image(options.images[0], 60))  # first calls load and compile things
        for turn in range(options.repeats):
            for index, image in enumerate(images):
                for place in range(len(WAYS)):
                    way = WAYS[(turn + place) % len(WAYS)]
                    began, began_cpu = time.perf_counter(), time.process_time()
                    result = runs[way](image)
                    best[way][index] = min(best[way][index], time.perf_counter() - began)
                    best_cpu[way][index] = min(best_cpu[way][index], time.process_time() - began_cpu)
                    if way == "explain":
                        maps[index] = min(maps[index], result.elapsed["maps"])
                        cells[index] = result.maps.maps.shape[1]
        mean = statistics.mean
        return {
            "seconds": {way: mean(best[way]) for way in WAYS},
            "cpu": {way: mean(best_cpu[way]) for way in WAYS},
            "maps": mean(maps),
            "cells": mean(cells),
        }
    run = runner(options.worker, model, processor, options)
    run(load_image(options.images[0], 60))
    reset_high_water()
    before = high_water()
    for image in images:
        run(image)
    return {"before": before, "peak": high_water()}


def measure(options: argparse.Namespace, worker: str, tokens: int | None) -> dict[str, Any]:
    """Run one worker in a fresh process."""
    arguments = [sys.executable, __file__, "--worker", worker, "--images", *options.images]
    for name in ("processor", "hidden", "layers", "vision_depth", "vocabulary", "dtype", "new_tokens", "repeats"):
        arguments += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    if tokens is not None:
        arguments += ["--tokens", str(tokens)]
    if options.threads:
        arguments += ["--threads", str(options.threads)]
    done = subprocess.run(arguments, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def report(options: argparse.Namespace) -> None:
    """Measure every way at both sizes and print the table."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=120)
    table = Table(
        title=f"Qwen2-VL, random weights, hidden {options.hidden}, {options.layers} layers, {options.dtype}; "
        f"{options.new_tokens} new tokens; {len(options.images)} photographs"
    )
    for column in ("image", "visual tokens", "way", "time s", "ratio", "cpu ratio", "maps ms", "peak MiB", "ratio"):
        table.add_column(column, justify="left" if column in ("image", "way") else "right")
    for size, tokens in (("as they are", None), ("enlarged", options.enlarged)):
        timed = measure(options, "time", tokens)
        seconds, cpu = timed["seconds"], timed["cpu"]
        peaks = {way: min(measure(options, way, tokens)["peak"] for _ in range(options.memory_repeats)) for way in WAYS}
        for way in WAYS:
            table.add_row(
                size if way == WAYS[0] else "",
                f"{timed['cells']:.0f}" if way == WAYS[0] else "",
                way,
                f"{seconds[way]:.2f}",
                f"{seconds[way] / seconds['generate']:.3f}",
                f"{cpu[way] / cpu['generate']:.3f}",
                f"{1000 * timed['maps']:.1f}" if way == "explain" else "",
                f"{peaks[way]:.0f}",
                f"{peaks[way] / peaks['generate']:.4f}",
            )
        table.add_section()
    console.print(table)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processor", required=True, help="folder or hub id of a Qwen2-VL processor")
    parser.add_argument("--images", nargs="+", required=True, help="photographs, or one folder of them")
    parser.add_argument("--count", type=int, default=3, help="photographs to take of a folder (default 3)")
    parser.add_argument("--enlarged", type=int, default=2000, help="visual tokens of the larger size (default 2000)")
    parser.add_argument("--new-tokens", type=int, default=32, help="length of the answer (default 32)")
    parser.add_argument("--repeats", type=int, default=4, help="timed runs of each photograph (default 4)")
    parser.add_argument("--memory-repeats", type=int, default=3, help="processes for each peak of memory (default 3)")
    parser.add_argument("--hidden", type=int, default=1536, help="channels, a multiple of 128 (default 1536)")
    parser.add_argument("--layers", type=int, default=4, help="decoder layers (default 4)")
    parser.add_argument("--vision-depth", type=int, default=2, help="layers of the vision tower (default 2)")
    parser.add_argument("--vocabulary", type=int, default=151936, help="words (default 151936)")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="of the model")
    parser.add_argument("--threads", type=int, default=0, help="torch threads (default: as torch chooses)")
    parser.add_argument("--worker", choices=("time", *WAYS), help=argparse.SUPPRESS)
    parser.add_argument("--tokens", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    first = Path(options.images[0])
    if first.is_dir():
        options.images = [str(path) for path in sorted(first.glob("*.jpg"))[: options.count]]
    if not options.images:
        parser.error(f"--images: expected photographs (*.jpg), got none in {first}")
    return options


def main() -> None:
    """Measure, in this process or in fresh ones."""
    options = parse()
    if options.threads:
        import torch

        torch.set_num_threads(options.threads)
    if options.worker:
        print(json.dumps(work(options)))
    else:
        report(options)


if __name__ == "__main__":
    main()
