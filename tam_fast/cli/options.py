"""The options of ``tam-fast explain``, in the groups that its help shows."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from tam_fast.cli.loading import Dtype

__all__ = [
    "CMAP",
    "MAX_NEW_TOKENS",
    "MAX_PIXELS",
    "OUTPUT",
    "Answer",
    "AsJson",
    "Cmap",
    "Compat",
    "CompatName",
    "Context",
    "ContextName",
    "Contrast",
    "Device",
    "DtypeOption",
    "Force",
    "Fps",
    "Images",
    "KernelSize",
    "MaxNewTokens",
    "MaxPixels",
    "Messages",
    "Method",
    "MethodOption",
    "Model",
    "NumFrames",
    "Output",
    "Prefix",
    "Prompt",
    "Quiet",
    "Regex",
    "Scale",
    "ScaleName",
    "TargetsName",
    "TargetsOption",
    "TextOnly",
    "Together",
    "Turn",
    "Videos",
    "Word",
]

CMAP = "inferno"
MAX_NEW_TOKENS = 128
MAX_PIXELS = 64_000_000
OUTPUT = Path("tam-fast-out")


class CompatName(str, Enum):
    """Other definitions of the maps than this library's own."""

    OFFICIAL = "official"
    PAPER = "paper"


class ContextName(str, Enum):
    """Which words before the answer are context."""

    TURN = "turn"
    CONVERSATION = "conversation"


class ScaleName(str, Enum):
    """How maps of other methods than TAM are brought to [0, 1]."""

    MAP = "map"
    ANSWER = "answer"


class TargetsName(str, Enum):
    """What is explained."""

    ANSWER = "answer"
    THINKING = "thinking"
    PROMPT = "prompt"


def _option(group: str, *names: str, help: str, metavar: str | None = None) -> Any:
    return typer.Option(*names, help=help, metavar=metavar, rich_help_panel=group)


# What is asked
_ASKED = "What is asked"
Images: TypeAlias = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="IMAGE",
        help="Image files or pipes, '-' for standard input; video files (.mp4, .mov, .webm, .mkv, .avi). Without any, "
        "a sample scene of the package.",
        show_default=False,
    ),
]
Prompt: TypeAlias = Annotated[
    str | None,
    _option(
        _ASKED, "-p", "--prompt", metavar="TEXT", help='What to ask the model; "Describe this image." if not given.'
    ),
]
Videos: TypeAlias = Annotated[
    list[str] | None,
    _option(_ASKED, "--video", metavar="FILE", help="A video file of any kind, an animated GIF too. Repeatable."),
]
Fps: TypeAlias = Annotated[
    float | None,
    _option(_ASKED, "--fps", help="Frames a second to take of videos; 2 if not given, 4 to 32 frames in all."),
]
NumFrames: TypeAlias = Annotated[
    int | None, _option(_ASKED, "--num-frames", help="How many frames to take of videos, evenly spread.")
]
Together: TypeAlias = Annotated[
    bool,
    _option(_ASKED, "--together", help="Show all to the model in one prompt: images in this order, then videos."),
]
TextOnly: TypeAlias = Annotated[bool, _option(_ASKED, "--text-only", help="Ask the prompt alone, without an image.")]
Messages: TypeAlias = Annotated[
    str | None,
    _option(
        _ASKED,
        "--messages",
        metavar="FILE",
        help="A conversation, as JSON in the chat format of transformers, '-' for standard input. Images and videos in "
        "it are paths seen from the file; those without come from the command line, in order.",
    ),
]
Turn: TypeAlias = Annotated[
    int | None,
    _option(
        _ASKED,
        "--turn",
        metavar="K",
        help="Explain the recorded answer to the user's message K, from 0. -1: the next answer.",
    ),
]

MaxPixels: TypeAlias = Annotated[
    int, _option(_ASKED, "--max-pixels", help="Refuse larger images and frames, by the size in the file's head.")
]

# What answers
_MODEL = "The model"
Model: TypeAlias = Annotated[
    str | None,
    _option(
        _MODEL,
        "-m",
        "--model",
        metavar="ID_OR_PATH",
        help="A model folder or a model hub id. Without it, the small model that comes with the package.",
    ),
]
Device: TypeAlias = Annotated[
    str, _option(_MODEL, "--device", help="auto (the GPU, if torch has one), cpu, cuda, cuda:1, ...")
]
DtypeOption: TypeAlias = Annotated[Dtype, _option(_MODEL, "--dtype", help="The model's number format.")]
MaxNewTokens: TypeAlias = Annotated[int, _option(_MODEL, "--max-new-tokens", help="Longest answer, in tokens.")]
Answer: TypeAlias = Annotated[
    str | None,
    _option(_MODEL, "--answer", metavar="TEXT", help="Explain this answer, instead of letting the model write one."),
]
Prefix: TypeAlias = Annotated[
    str | None,
    _option(_MODEL, "--prefix", metavar="TEXT", help="The beginning of the answer, which goes on from there."),
]

# What is explained
_EXPLAINED = "What is explained"
TargetsOption: TypeAlias = Annotated[
    TargetsName | None,
    _option(
        _EXPLAINED,
        "--targets",
        help="The answer (if not given), the thinking section before it, or the words of the prompt.",
    ),
]
Word: TypeAlias = Annotated[
    list[str] | None,
    _option(_EXPLAINED, "--word", metavar="WORD", help="Explain this word or phrase of the answer alone. Repeatable."),
]
Regex: TypeAlias = Annotated[
    list[str] | None,
    _option(_EXPLAINED, "--regex", metavar="PATTERN", help="Explain what matches in the answer alone. Repeatable."),
]
Context: TypeAlias = Annotated[
    ContextName,
    _option(_EXPLAINED, "--context", help="Words that count as context: those of the turn, or of all turns."),
]
Contrast: TypeAlias = Annotated[
    bool, _option(_EXPLAINED, "--contrast", help="Also find how probable each word is without the images.")
]
Method: TypeAlias = Annotated[
    str,
    _option(
        _EXPLAINED,
        "--method",
        metavar="METHOD[+INTERFERENCE][+FILTER]",
        help="Whose maps: a name that 'tam-fast methods' lists, and what is done to them, such as layer_cam+eci+rgf.",
    ),
]
MethodOption: TypeAlias = Annotated[
    list[str] | None,
    _option(
        _EXPLAINED,
        "--method-option",
        metavar="NAME=VALUE",
        help="An option of the method, such as layer=0; 'tam-fast methods' lists them. Repeatable.",
    ),
]
Scale: TypeAlias = Annotated[
    ScaleName,
    _option(
        _EXPLAINED,
        "--scale",
        help="What maps of another method are scaled by: the extremes of each map, or of all maps of the answer.",
    ),
]
Compat: TypeAlias = Annotated[
    CompatName | None,
    _option(_EXPLAINED, "--compat", help="Reproduce the official program, or the paper's equations to the letter."),
]
KernelSize: TypeAlias = Annotated[
    int, _option(_EXPLAINED, "--kernel-size", help="Side of the filter's window: odd, 1 to 15; 1 switches it off.")
]

# What comes out
_RESULTS = "Results"
Output: TypeAlias = Annotated[
    Path,
    _option(
        _RESULTS,
        "-o",
        "--output",
        metavar="OUT",
        help="Folder for the results, made if it is missing; or one file: NAME.html, .png, .jpg, .mp4 or .gif.",
    ),
]
Cmap: TypeAlias = Annotated[
    str,
    _option(_RESULTS, "--cmap", help="inferno, viridis, jet (the paper's look), or any of matplotlib, if installed."),
]
Force: TypeAlias = Annotated[
    bool, _option(_RESULTS, "--force", help="Replace files of these names even if another program wrote them.")
]
AsJson: TypeAlias = Annotated[
    bool, _option(_RESULTS, "--json", help="Print one JSON document instead of text; nothing else goes to stdout.")
]
Quiet: TypeAlias = Annotated[bool, _option(_RESULTS, "-q", "--quiet", help="Print nothing but errors (and --json).")]
