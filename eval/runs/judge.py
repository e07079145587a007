"""A language model as judge, behind any endpoint that speaks OpenAI's chat completions.

Two metrics ask for one: MM-Vet, whose answers it rates from 0 to 1, and MMBench, of whose answers it says which option
they mean where the rules of the metric cannot tell. What it said goes to `judged.jsonl`, which scoring reads. An answer
that was not judged has no score there, and is never counted as wrong for it: the run is reported as not judged.

Numbers of MM-Vet are comparable only if judge and prompt are the same; both are written down with every verdict. The
authors' prompt, with its examples, is published at https://github.com/yuweihao/MM-Vet; give it by --prompt.
"""

import dataclasses
import hashlib
import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from eval.metrics.mmbench import option_lmms_eval, option_vlmevalkit
from eval.runs.folder import JUDGED
from eval.runs.records import Record
from eval.runs.score import load
from vila_jax.errors import ConfigError, VilaError

RATING = """Rate how correct an answer to a question about a picture is, from 0.0 (wrong) to 1.0 (all correct).
Parts of the truth that are joined by <AND> must all be in the answer; of those joined by <OR> one is enough.

Question: {question}
Truth: {reference}
Answer: {answer}

Reply with the number alone."""

OPTION = """Which of the options does the answer mean? If it means none of them, reply Z.

Question: {question}
{options}
Answer: {answer}

Reply with one capital letter alone."""

_NUMBER = re.compile(r"[01](?:\.\d+)?")
_LETTER = re.compile(r"[A-Z]")
_TEMPORARY = (408, 409, 425, 429)
"""Statuses besides those from 500 on that may pass."""


class NotJudged(VilaError):
    """The endpoint gave no verdict."""


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """Where a judge is asked.

    Attributes:
      url: the base, such as `https://api.openai.com/v1`.
      model: its name there.
      key: sent as bearer token; None sends none.
      retries: after the first attempt, each after twice the wait of the one before.
      wait: seconds before the first of them.
      timeout: seconds of one attempt.
    """

    url: str
    model: str
    key: str | None = dataclasses.field(default=None, repr=False)
    retries: int = 4
    wait: float = 1.0
    timeout: float = 60.0

    def __post_init__(self):
        if not self.url.startswith(("http://", "https://")):
            raise ConfigError(f"{self.url!r} is no address", where="--endpoint", fix="Write https://HOST/v1.")

    def ask(self, prompt: str) -> str:
        """What the judge replies.

        Raises:
          NotJudged: all attempts failed, or the endpoint refuses.
        """
        content = {"model": self.model, "messages": [{"role": "user", "content": prompt}], "temperature": 0}
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        request = urllib.request.Request(
            f"{self.url.rstrip('/')}/chat/completions", json.dumps(content).encode(), headers
        )
        wait, reason = self.wait, ""
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(wait)
                wait *= 2
            try:
                with urllib.request.urlopen(request, timeout=self.timeout) as response:
                    return str(json.load(response)["choices"][0]["message"]["content"])
            except urllib.error.HTTPError as error:
                reason = f"status {error.code}"
                error.close()
                if error.code < 500 and error.code not in _TEMPORARY:
                    break
            except (OSError, ValueError, LookupError, TypeError) as error:
                reason = f"{type(error).__name__}: {error}"
        raise NotJudged(f"no verdict: {reason}", where=self.url)


@dataclasses.dataclass(frozen=True)
class Question:
    """What one metric asks its judge.

    Attributes:
      prompt: with `{question}`, `{answer}` and either `{reference}` or `{options}`.
      needed: whether an answer is to be judged, under a variant of the metric.
      read: of the reply, what scoring uses; None if it is no verdict.
    """

    prompt: str
    needed: Callable[[Record, str], bool]
    read: Callable[[str], dict[str, Any] | None]


def question(metric: str, prompt: str | None = None) -> Question:
    """What is asked for a metric, by its own prompt or another.

    Raises:
      ConfigError: the metric needs no judge, or a mark is missing in the prompt.
    """
    if metric not in _QUESTIONS:
        names = ", ".join(_QUESTIONS)
        raise ConfigError(f"answers of {metric} are not judged", where="judge", fix=f"Judged are: {names}.")
    own = _QUESTIONS[metric]
    marks = [mark for mark in re.findall(r"\{\w+\}", own.prompt) if prompt is not None and mark not in prompt]
    if marks:
        raise ConfigError(f"it does not hold {', '.join(marks)}", where="--prompt", fix="Write them where they belong.")
    return own if prompt is None else dataclasses.replace(own, prompt=prompt)


def _rating(reply: str) -> dict[str, Any] | None:
    found = _NUMBER.fullmatch(reply.strip().removeprefix("Correctness:").strip().rstrip("."))
    return {"score": float(found[0])} if found and float(found[0]) <= 1 else None


def _option(reply: str) -> dict[str, Any] | None:
    found = _LETTER.fullmatch(reply.strip().strip("().*"))
    return {"prediction": found[0]} if found else None


_READERS = {"vlmevalkit": option_vlmevalkit, "lmms_eval_prefetch": option_lmms_eval}


def _unread(record: Record, variant: str) -> bool:
    """Whether no rule of the variant tells which option an answer means."""
    return _READERS[variant](record.answer or "", record.extras["choices"]) is None


_QUESTIONS: Mapping[str, Question] = {
    "mmvet": Question(RATING, lambda record, variant: True, _rating),
    "mmbench": Question(OPTION, _unread, _option),
}


def fill(prompt: str, record: Record) -> str:
    """The prompt about one answer."""
    choices = record.extras.get("choices") or {}
    options = "\n".join(f"{letter}. {text}" for letter, text in choices.items()) if isinstance(choices, dict) else ""
    values = {
        "question": str(record.extras.get("question") or record.question),
        "reference": " <OR> ".join(record.references),
        "options": options,
        "answer": record.answer or "",
    }
    return re.sub(r"\{(question|reference|options|answer)\}", lambda found: values[found[1]], prompt)


def judge(
    folder: Path, endpoint: Endpoint, prompt: str | None = None, on_done: Callable[[int, int], None] = lambda *_: None
) -> tuple[int, list[str]]:
    """Asks about every answer of a run that needs it and has no verdict of this judge and prompt yet.

    Args:
      on_done: called with the numbers of answers asked about, and of those to be asked.

    Returns:
      How many verdicts came, and for every answer without one, why.

    Raises:
      ConfigError: see `question`.
      DataError: see `eval.runs.score.load`.
    """
    run = load(folder)
    asked = question(run.metric.name, prompt)
    name = {
        "judge": endpoint.model,
        "prompt_sha256": hashlib.sha256(asked.prompt.encode()).hexdigest(),
        "variant": run.variant,
    }
    known = {verdict["key"] for verdict in _verdicts(folder) if all(verdict.get(key) == name[key] for key in name)}
    needed = [record for record in run.records if record.error is None and asked.needed(record, run.variant)]
    needed = [record for record in needed if record.key not in known]
    reasons = []
    with (folder / JUDGED).open("a", encoding="utf-8") as file:
        for done, record in enumerate(needed, start=1):
            try:
                reply = endpoint.ask(fill(asked.prompt, record))
                verdict = asked.read(reply)
                if verdict is None:
                    raise NotJudged(f"the reply is no verdict: {reply[:60]!r}", where=endpoint.url)
                file.write(json.dumps({"key": record.key, "id": record.id, **verdict, "reply": reply, **name}) + "\n")
                file.flush()
            except NotJudged as error:
                reasons.append(f"{record.id}: {error}")
            on_done(done, len(needed))
    return len(needed) - len(reasons), reasons


def _verdicts(folder: Path) -> Iterator[dict[str, Any]]:
    """Those on file that can be read; scoring reports the others."""
    path = folder / JUDGED
    lines: Iterable[str] = path.read_text(encoding="utf-8").splitlines() if path.exists() else ()
    for line in lines:
        try:
            verdict = json.loads(line)
        except ValueError:
            continue
        if isinstance(verdict, dict) and "key" in verdict:
            yield verdict
