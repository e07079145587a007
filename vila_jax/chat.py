"""A conversation of several turns, each of which reads only what is new."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from vila_jax.infer.prefixes import PrefixCache, row_bytes
from vila_jax.text.messages import VideoSource
from vila_jax.vision.open import open_image

if TYPE_CHECKING:
    from vila_jax.infer.answers import Answers, Generation
    from vila_jax.model import Model


class Chat:
    """A conversation with a model.

        chat = model.chat(budget="hired:0.2")
        chat.ask("What is this?", ["photo.jpg"]).text
        chat.ask("And what is behind it?").text         # neither the picture nor the first turn is read again

    Answers are those that the whole conversation would get as one prompt. A turn that fails, or that is answered
    without a word, leaves no trace.

    Args:
      model: answers.
      system: what the model is told in front of the conversation; by default the checkpoint's own words.
      prefixes: where keys and values are kept; by default room for this conversation alone, at its longest.
      **options: of every turn, see `Model.answers`.

    Attributes:
      messages: what was said, in the Hugging Face form.
      last: the latest answer.
    """

    def __init__(
        self, model: "Model", *, system: str | None = None, prefixes: PrefixCache | None = None, **options: Any
    ):
        self._model, self._options = model, options
        dtype = model.engine.phases.cache_dtype
        size = row_bytes(model.config.vlm.decoder, model.config.context_length, dtype)
        self._prefixes = PrefixCache(size) if prefixes is None else prefixes
        self.messages: list[dict[str, Any]] = [] if system is None else [{"role": "system", "content": system}]
        self.last: Generation | None = None

    def ask(self, text: str, media: Sequence[Any] = (), **options: Any) -> "Generation":
        """Says something, and waits for the answer.

        Args:
          text: what is said.
          media: pictures that are shown with it, and `VideoSource(...)` for videos.
          **options: of this turn, see `Model.answers`.

        Raises:
          VilaError: whatever is wrong with the turn; the conversation can go on.
        """
        for _ in self.stream(text, media, **options):
            pass
        assert self.last is not None
        return self.last

    def stream(self, text: str, media: Sequence[Any] = (), **options: Any) -> Iterator[str]:
        """As `ask`, but yields the answer piece by piece. Of one that is given up counts what was said until then."""
        parts = [_part(source) for source in media] + [{"type": "text", "text": text}]
        said = [*self.messages, {"role": "user", "content": parts}]
        chosen = {**self._options, **options}
        return self._listen(said, self._model.answers(messages=said, prefixes=self._prefixes, **chosen))

    def _listen(self, said: list[dict[str, Any]], answers: "Answers") -> Iterator[str]:
        pieces = iter(answers)
        try:
            for [piece] in pieces:
                if piece:
                    yield piece
        finally:
            pieces.close()
            [self.last] = answers.results()
            if self.last.text:
                self.messages = [*said, {"role": "assistant", "content": self.last.text}]


def _part(source: Any) -> dict[str, Any]:
    """A part of a message. Pictures are opened once, so that their files may change."""
    if isinstance(source, VideoSource):
        return {"type": "video", "video": source}
    return {"type": "image", "image": open_image(source)}
