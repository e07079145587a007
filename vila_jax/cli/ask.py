"""Asks a model about pictures and prints its answer as it comes.

Without --raw-prompt the prompt is what a user says after showing the pictures: it goes through the chat template of the
checkpoint, or the conversation style of the model. With it, the prompt is taken as it is, and must hold one <image> per
picture (and <vila/video> for the video): text and pictures may then alternate, as in examples of question and answer.
"""

import argparse
import sys
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from vila_jax.cli import arguments, terminal, units
from vila_jax.cli.loading import load_model
from vila_jax.cli.progress import Progress

if TYPE_CHECKING:
    from vila_jax.infer.answers import Answers, Generation
    from vila_jax.model import Model

SUMMARY = "ask a model about pictures"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `vila-jax ask`."""
    arguments.add_model(parser)
    parser.add_argument(
        "--image", metavar="F", action="append", default=[], help="a picture; repeat it for several, in order"
    )
    parser.add_argument("--video", metavar="F", help="a video file, or a folder of frames, shown after the pictures")
    parser.add_argument(
        "--num-frames", metavar="N", type=arguments.whole(1), help="frames of the video (default: the checkpoint's own)"
    )
    parser.add_argument("--prompt", metavar="TEXT", required=True, help="the question")
    parser.add_argument("--raw-prompt", action="store_true", help="take the prompt as it is, <image> included")
    parser.add_argument("--style", metavar="NAME", help="conversation style (default: the one of the checkpoint)")
    parser.add_argument("--budget", metavar="SPEC", help="visual-token budget, e.g. hired:0.2 (default: all tokens)")
    arguments.add_generation(parser)
    parser.add_argument("--ignore-eos", action="store_true", help="go on after end tokens")
    arguments.add_dtype(parser)
    arguments.add_quantize(parser)
    arguments.add_json(parser)
    parser.add_argument("--no-stream", action="store_true", help="print the answer when it is complete")


def run(args: argparse.Namespace) -> int:
    """Answers one prompt."""
    from vila_jax.cli.cache import enable_compile_cache
    from vila_jax.vision.open import open_image

    images = [open_image(source) for source in args.image]  # before gigabytes of weights are read
    enable_compile_cache()
    start = time.perf_counter()
    with Progress(enabled=not args.json) as progress:
        model = load_model(args, progress, budget=args.budget, style=args.style, wait=False, mmap=True)
        answers = _asked(model, args, images)
        answers.compile(wait=False)
        model.wait()
        loaded = time.perf_counter()
        result = _answer(answers, args, progress)
    if args.json:
        terminal.print_json(_summary(result, loaded - start))
    else:
        terminal.stderr().print(closing_line(result), style="dim", soft_wrap=True)
    return 0


def _asked(model: "Model", args: argparse.Namespace, images: list[Any]) -> "Answers":
    from vila_jax.text.messages import VideoSource

    videos = [] if args.video is None else [VideoSource(args.video, args.num_frames)]
    prompt: dict[str, Any] = {"prompt": args.prompt, "images": [*images, *videos]}
    if not args.raw_prompt:
        content = [{"type": "image", "image": image} for image in images]
        content += [{"type": "video", "video": video} for video in videos]
        content += [{"type": "text", "text": args.prompt}]
        prompt = {"messages": [{"role": "user", "content": content}]}
    return model.answers(**prompt, **arguments.generation(args), ignore_eos=args.ignore_eos)


def _answer(answers: "Answers", args: argparse.Namespace, progress: Progress) -> "Generation":
    progress.phase("reading the request")
    pieces = (piece for [piece] in answers)
    if args.json or args.no_stream:
        _wait(pieces, progress)
        [result] = answers.results()
        if not args.json:
            print(terminal.printable(result.text))
        return result
    print_stream(pieces, progress)
    return answers.results()[0]


def _wait(pieces: Iterable[str], progress: Progress) -> None:
    for i, _ in enumerate(pieces):
        if i == 0:
            progress.phase("generating")


def print_stream(pieces: Iterable[str], progress: Progress) -> None:
    """Prints an answer as it comes, and takes the line of the progress away for good."""
    for piece in pieces:
        if piece:
            progress.mute()
            sys.stdout.write(terminal.printable(piece))
            sys.stdout.flush()
    print(flush=True)  # before what is said of it


def _summary(result: "Generation", load: float) -> dict[str, Any]:
    timings = result.timings
    return {
        "text": result.text,
        "token_ids": list(result.token_ids),
        "prompt_tokens": result.usage.prompt_tokens,
        "visual_tokens": {"full": result.usage.visual_tokens_full, "kept": result.usage.visual_tokens_kept},
        "finish_reason": result.finish_reason,
        "timings_s": {
            "load": load,
            "compile": timings.compile,
            "preprocess": timings.preprocess,
            "prefill": timings.prefill,
            "decode": timings.decode,
            "time_to_first_token": timings.time_to_first_token,
        },
    }


def closing_line(result: "Generation") -> str:
    """One line about what was read and written, and how fast."""
    usage, timings = result.usage, result.timings
    cached = f" ({usage.cached_tokens:,} cached)" if usage.cached_tokens else ""
    parts = [f"{usage.prompt_tokens:,} prompt tokens{cached}"]
    if usage.visual_tokens_full:
        parts.append(f"visual {usage.visual_tokens_full:,} → {usage.visual_tokens_kept:,}")
    parts.append(f"first token {units.seconds(timings.time_to_first_token)}")
    rest = usage.completion_tokens - 1  # the first one belongs to the prefill
    speed = f" at {units.number(rest / timings.decode)}/s" if rest > 0 and timings.decode > 0 else ""
    parts.append(f"{usage.completion_tokens:,} new tokens{speed} ({result.finish_reason})")
    if timings.compile >= 0.1:
        parts.append(f"compiled in {units.seconds(timings.compile)}")
    return " · ".join(parts)
