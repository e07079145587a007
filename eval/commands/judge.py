"""Has a language model judge the answers of MM-Vet, or those of MMBench that no rule can read; then scores again.

The endpoint is any that speaks OpenAI's chat completions. Nothing is asked without one, and what it does not judge
stays "not judged". The same command goes on where it was stopped.
"""

import argparse
import os
from pathlib import Path

from rich.console import Console

from eval.commands import tables
from eval.runs.folder import find_runs
from eval.runs.judge import Endpoint, judge
from eval.runs.score import score
from vila_jax.cli import arguments
from vila_jax.errors import ConfigError

console = Console(stderr=True, highlight=False)
_SHOWN = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `python -m eval judge`."""
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="of a run of mmvet or mmbench")
    parser.add_argument("--endpoint", required=True, metavar="URL", help="such as https://api.openai.com/v1")
    parser.add_argument("--judge", required=True, metavar="NAME", help="name of the model there")
    parser.add_argument(
        "--key-variable", metavar="NAME", help="environment variable that holds the key (default: no key)"
    )
    parser.add_argument(
        "--prompt", type=Path, metavar="FILE", help="with {question}, {answer} and {reference} or {options}"
    )
    parser.add_argument("--retries", type=arguments.whole(0), default=4, metavar="N", help="default: 4")


def run(args: argparse.Namespace) -> int:
    """Judges and scores; the status is not 0 if an answer was not judged."""
    key = os.environ.get(args.key_variable) if args.key_variable else None
    if args.key_variable and not key:
        raise ConfigError("it is not set", where=args.key_variable, fix="Put the key of the endpoint there.")
    endpoint = Endpoint(args.endpoint, args.judge, key, retries=args.retries)
    prompt = args.prompt.read_text(encoding="utf-8") if args.prompt else None
    folders, missing = find_runs(args.folder), 0
    for folder in folders:
        with console.status("judging") as shown:
            judged, reasons = judge(folder, endpoint, prompt, lambda done, of: shown.update(f"judging: {done} of {of}"))
        missing += len(reasons)
        console.print(f"{folder}: {judged} judged, {len(reasons)} not judged", soft_wrap=True)
        for reason in reasons[:_SHOWN]:
            console.print(f"  {reason}", markup=False, soft_wrap=True)
        score(folder)
    tables.show(folders)
    return 1 if missing else 0
