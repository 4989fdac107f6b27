"""What explaining and streaming add to generate(), from picture to result.

Two models: the embedded one on its sample scenes; and, given a processor and photographs, a Qwen2-VL of random weights
with 2B's width and vocabulary but few layers, which downloads nothing and has less to hide the cost behind.

Wall-clock ratios of whole runs resolve about 1 %, so the time that is spent in tam_fast itself is measured directly as
well: its forward hooks, and scores and maps. A stream generates in a thread of its own, for which OpenMP keeps other
workers that wait in another way, so generation alone in a fresh thread stands beside it. Processor time is not
reported: it counts the waiting too, for workers spin, and so tells a stream from generate() by that alone.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import tolerances
import torch

import tam_fast
from bench import machine
from bench.measure import Peer, Quantiles, expect_close, expect_equal, interleave, quantiles, verify
from bench.records import Record, record, single
from bench.tables import Options

PROMPT = "Describe this image."
GENERATE, EXPLAIN, STREAM = "generate", "explain", "stream"
IN_THREAD = "generate, in a fresh thread"
CELL = 28 * 28  # pixels of a visual token
HIDDEN, LAYERS, VISION_DEPTH, VOCABULARY = 1536, 4, 2, 151_936
ENLARGED = 2000
NEW_TOKENS = 16


def random_model(options: Options) -> Any:
    """Make a Qwen2-VL of random weights, float32."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    hidden, layers = (256, 1) if options.get("quick") else (HIDDEN, LAYERS)
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": VOCABULARY,
            "hidden_size": hidden,
            "intermediate_size": hidden * 35 // 6,
            "num_hidden_layers": layers,
            "num_attention_heads": hidden // 128,
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        },
        vision_config={"depth": VISION_DEPTH, "embed_dim": 320, "num_heads": 4, "hidden_size": hidden},
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    return Qwen2VLForConditionalGeneration(config).eval()


def photographs(folder: str, count: int) -> list[Path]:
    """The first photographs of a folder.

    Raises
    ------
    FileNotFoundError
        If it holds none.
    """
    found = sorted(Path(folder).glob("*.jpg"))[:count]
    if not found:
        raise FileNotFoundError(f"images: expected a folder with photographs (*.jpg), got none in {Path(folder).name}")
    return found


def load_image(path: Path, tokens: int | None) -> Any:
    """Load a picture as it is, or scaled to about so many visual tokens."""
    from PIL import Image

    image = Image.open(path).convert("RGB")
    if tokens is None:
        return image
    scale = (tokens * CELL / (image.width * image.height)) ** 0.5
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)


class Ways:
    """Plain generation, explaining and streaming of the picture at hand, each from picture to result."""

    def __init__(self, model: Any, processor: Any, settings: dict[str, Any]) -> None:
        self.model, self.processor, self.settings = model, processor, settings
        self.explainer = tam_fast.Explainer(model, processor)
        self.image: Any = None
        self.positions: list[int] = []  # of each picture that was checked
        self.inside: dict[str, list[float]] = {EXPLAIN: [], STREAM: []}
        messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": PROMPT}]}]
        self._text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)

    def generate(self, **more: Any) -> Any:
        """Generate as a user would; returns what generate() returns."""
        inputs = self.processor(images=[self.image], text=[self._text], return_tensors="pt")
        with torch.no_grad():
            output = self.model.generate(**inputs, **self.settings, **more)
        ids = output if isinstance(output, torch.Tensor) else output.sequences
        self.processor.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :])
        return output

    def generate_in_thread(self) -> None:
        """Generate as a stream does, and explain nothing."""
        thread = threading.Thread(target=self.generate)
        thread.start()
        thread.join()

    def explain(self) -> tam_fast.Explanation:
        """Explain the answer."""
        with timed_hooks() as hooks:
            found = self.explainer.explain(self.image, PROMPT, **self.settings)
        self._note(EXPLAIN, found, sum(hooks))
        return found

    def stream(self) -> tam_fast.Explanation:
        """Explain every token as it comes, and look at each map: what nobody reads is put off to the end."""
        with timed_hooks() as hooks:
            steps = self.explainer.stream(self.image, PROMPT, **self.settings)
            for step in steps:
                float(step.map.max())
        self._note(STREAM, steps.explanation, sum(hooks))
        return steps.explanation

    def _note(self, way: str, found: tam_fast.Explanation, hooks: float) -> None:
        # What generate() itself took is what passed within it, less the hooks.
        alone = found.elapsed["generate"] - hooks
        self.inside[way].append((found.elapsed["maps"] + hooks) / alone)

    def peers(self, *, in_thread: bool) -> list[Peer]:
        """The ways, with checks that belong together: each looks at what the ones before gave for the picture."""
        found: dict[str, Any] = {}

        def check_generate(output: torch.Tensor) -> None:
            found[GENERATE] = output[0]

        def check_explain(explanation: tam_fast.Explanation) -> None:
            found[EXPLAIN] = explanation
            self._check(explanation, found[GENERATE])

        def check_stream(explanation: tam_fast.Explanation) -> None:
            expect_equal(explanation.token_ids, found[EXPLAIN].token_ids, "streamed tokens")
            expect_equal(explanation.maps.maps, found[EXPLAIN].maps.maps, "streamed maps")

        peers = [
            Peer(GENERATE, self.generate, check_generate),
            Peer(EXPLAIN, self.explain, check_explain),
            Peer(STREAM, self.stream, check_stream),
        ]
        return [*peers, Peer(IN_THREAD, self.generate_in_thread, lambda _: None)] if in_thread else peers

    def _check(self, explanation: tam_fast.Explanation, sequence: torch.Tensor) -> None:
        """Tokens against generate()'s, maps against the oracle on states that transformers itself returns."""
        start, count = explanation.maps.layout.answer_start, len(explanation.token_ids)
        expect_equal(explanation.token_ids, sequence[start : start + count], "explained tokens")
        output = self.generate(output_hidden_states=True, return_dict_in_generate=True)
        # Each step's last layer is what the classifier reads: after the final norm.
        hidden = torch.cat([step[-1][0] for step in output.hidden_states])[: start + count - 1]
        _check_maps(explanation.maps, hidden, self.model.get_output_embeddings().weight, sequence)
        self.positions.append(int(explanation.maps.maps.shape[1]))


def _check_maps(
    maps: tam_fast.TokenActivationMaps, hidden: torch.Tensor, classifier: torch.Tensor, sequence: torch.Tensor
) -> None:
    layout, count = maps.layout, hidden.shape[0] + 1
    rows, ids = sequence[:count].unique(return_inverse=True)
    expected = oracle.activation_maps(
        hidden.float().numpy(),
        classifier.detach()[rows].float().numpy(),
        ids.numpy(),
        layout.visual_positions.numpy(),
        layout.sizes,
        layout.prompt.numpy(),
        layout.answer_start,
    )
    # States of a trained model spread over decades and nearly cancel in places.
    expect_close(maps.maps, expected.maps, 10 * tolerances.PIPELINE, "maps")


@contextlib.contextmanager
def timed_hooks() -> Iterator[list[float]]:
    """Collect the seconds spent in every forward hook that is registered within the block."""
    original = torch.nn.Module.register_forward_hook
    seconds: list[float] = []

    def register(module: torch.nn.Module, hook: Callable[..., Any], **options: Any) -> Any:
        def timed(*arguments: Any) -> Any:
            began = time.perf_counter()
            try:
                return hook(*arguments)
            finally:
                seconds.append(time.perf_counter() - began)

        return original(module, timed, **options)

    torch.nn.Module.register_forward_hook = register  # type: ignore[method-assign]
    try:
        yield seconds
    finally:
        torch.nn.Module.register_forward_hook = original  # type: ignore[method-assign]


def _share(case: str, way: str, values: list[float], threads: int) -> Record:
    found = Quantiles(*(100 * value for value in quantiles(values)))
    return Record(
        case,
        f"{way}: within tam_fast",
        "% of generate()",
        threads,
        *found,
        samples=len(values),
        note="forward hooks, scores and maps, measured directly",
    )


def _compare(
    title: str,
    ways: Ways,
    pictures: list[Any],
    threads: int,
    *,
    rounds: int,
    budget: float = 0.0,
    in_thread: bool = True,
) -> list[Record]:
    """Time the ways by turns, picture by picture."""
    peers = ways.peers(in_thread=in_thread)
    for picture in pictures[1:]:  # the first is checked by `interleave`
        ways.image = picture
        verify(title, peers)

    def choose(number: int) -> None:
        # Every picture meets every order of the ways.
        ways.image = pictures[number // len(peers) % len(pictures)]

    timings = interleave(title, peers, budget=budget, min_samples=rounds, max_rounds=60, on_round=choose)
    case = f"{title}, {float(np.mean(ways.positions)):,.0f} visual tokens"
    records = [record(case, timing, "s", threads) for timing in timings]
    for timing in timings:
        if timing.name in ways.inside:
            last = ways.inside[timing.name][-timing.samples * timing.inner :]
            records.append(_share(case, timing.name, last, threads))
    return records


def _embedded(threads: int, options: Options) -> list[Record]:
    from tam_fast.demo import sample_scenes

    model, processor = tam_fast.load_demo()
    quick = options.get("quick")
    pictures = [load_image(path, None) for path in sample_scenes()[: 1 if quick else 4]]
    ways = Ways(model, processor, {"max_new_tokens": 64, "do_sample": False})
    return _compare("embedded model", ways, pictures, threads, rounds=2 if quick else 24, budget=1.0 if quick else 6.0)


def _random(part: str, threads: int, options: Options) -> list[Record]:
    quick = options.get("quick")
    ways = Ways(random_model(options), tam_fast.load_processor(options["processor"]), _random_settings(options))
    paths = photographs(options["images"], 1 if quick or part == "large" else 2)
    tokens = None if part == "small" else 400 if quick else ENLARGED
    pictures = [load_image(path, tokens) for path in paths]
    ways.image = load_image(paths[0], 60)
    ways.generate()  # first calls load and compile things
    rounds = 1 if quick else 8 if part == "small" else 4
    return _compare("random weights, 4 layers", ways, pictures, threads, rounds=rounds, in_thread=part == "small")


def _random_settings(options: Options) -> dict[str, Any]:
    tokens = 2 if options.get("quick") else NEW_TOKENS
    return {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}


def _memory(way: str, threads: int, options: Options) -> list[Record]:
    """Peak of resident memory of one way in this process, once the model has run on a small picture."""
    ways = Ways(random_model(options), tam_fast.load_processor(options["processor"]), _random_settings(options))
    (path,) = photographs(options["images"], 1)
    run = getattr(ways, way)
    ways.image = load_image(path, 60)
    run()
    ways.image = load_image(path, 400 if options.get("quick") else ENLARGED)
    machine.reset_high_water()
    run()
    peak = machine.high_water()
    return [single("random weights, 4 layers, peak memory", way, "MiB", threads, peak, "a fresh process")]


def measure(part: str, threads: int, options: Options) -> list[Record]:
    """Seconds from picture to result, ratios to generate(), and the share of its time that tam_fast itself takes."""
    if part == "embedded":
        return _embedded(threads, options)
    if part.startswith("memory "):
        return _memory(part.removeprefix("memory "), threads, options)
    return _random(part, threads, options)
