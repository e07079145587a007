"""The language model inside a model, for `lm-eval`: MMLU, BBH, DROP and all else that is text alone.

    python -m vila_jax.adapters.lm_eval --model vila_jax --model_args pretrained=FOLDER --tasks mmlu --num_fewshot 5

This is the harness's own command line, which has no entry points for models; from Python, pass a `VilaLM` to
`lm_eval.simple_evaluate(model=...)`. Nothing here imports torch.

Written against lm-eval 0.4.13: `lm_eval/api/model.py` and `models/huggingface.py`.
"""

import functools
from collections.abc import Sequence
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from vila_jax.adapters import loading
from vila_jax.adapters.bulk import Bulk
from vila_jax.adapters.decoding import Decoding
from vila_jax.errors import PromptError, VilaError
from vila_jax.infer.layout import Request


@register_model("vila_jax")
class VilaLM(TemplateLM):
    """A model of ours in `lm-eval`.

    Args:
      pretrained: a folder or a Hub id; `nano` is the embedded model.
      batch_size: rows of a batch.
      max_gen_toks: where a task names no length.
      seed: of tasks that sample.
      **options: see `loading.load`.

    Raises:
      VilaError: an argument is unknown or wrong, or the model cannot be loaded.
    """

    def __init__(
        self, pretrained: str, *, batch_size: int | str = 8, max_gen_toks: int = 256, seed: int = 0, **options: Any
    ):
        super().__init__()
        rows = loading.batch_rows(batch_size)
        self.vila = loading.load(pretrained, **options)
        self.bulk = Bulk(self.vila, rows)
        self.max_gen_toks, self.seed, self._name = max_gen_toks, seed, str(pretrained)

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return self.vila.end_tokens[0]

    @property
    def prefix_token_id(self) -> int:
        """The token that stands for an empty context: BOS, or where there is none the end token."""
        bos = self.vila.tokenizer.bos_id
        return self.eot_token_id if bos is None else bos

    @property
    def max_length(self) -> int:
        """Tokens that the model reads at most."""
        return self.vila.config.context_length

    @property
    def tokenizer_name(self) -> str:
        """The model's name, by which the harness tells cached prompts apart."""
        return self._name.replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """How conversations are written, for the harness's records: the source of a template, or our style."""
        if chat_template is False or chat_template is None:
            return None
        return self.vila.tokenizer.chat_template or repr(self.vila.style)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as the text that the model was trained on."""
        return self.vila.form.render(chat_history, self.vila.style, add_generation_prompt=add_generation_prompt)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Ids of a text; unless asked otherwise with BOS in front, once."""
        if add_special_tokens is None:
            return self.vila.tokenizer.encode_prompt(string)
        return self.vila.tokenizer.encode(string, add_special_tokens=add_special_tokens)

    def tok_decode(self, tokens: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of ids."""
        return self.vila.tokenizer.decode(tokens, skip_special_tokens=skip_special_tokens)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Log-likelihood of every continuation, and whether it is greedy.

        Contexts that are too long lose their beginning.
        """
        if not requests:
            return []
        contexts = [Request(self._fitting(context, len(ids))) for _, context, ids in requests]
        with tqdm(total=len(requests), desc="Running loglikelihood requests", disable=disable_tqdm) as bar:
            found = self.bulk.log_likelihoods(contexts, [ids for *_, ids in requests], on_done=bar.update)
        results = [(one.total, one.is_greedy) for one in found]
        for (key, *_), result in zip(requests, results, strict=True):
            if key is not None:
                self.cache_hook.add_partial("loglikelihood", key, result)
        return results

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, in windows of the model's context, each token predicted once."""
        windows, sizes = [], []
        for (text,) in (request.args for request in requests):
            ids = self.tok_encode(text, add_special_tokens=False)
            rolled = get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, context_len=1)
            own = [(None, *make_disjoint_window(pair)) for pair in rolled]
            windows += own
            sizes.append(len(own))
        found = iter(self._loglikelihood_tokens(windows, disable_tqdm=disable_tqdm))
        totals = [sum(next(found)[0] for _ in range(size)) for size in sizes]
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """One answer per request. Contexts that leave no room for it lose their beginning."""
        if not requests:
            return []
        decodings = [Decoding.of(request.args[1], self.max_gen_toks) for request in requests]
        makers = [
            functools.partial(self._prompt, request.args[0], decoding.max_new_tokens)
            for request, decoding in zip(requests, decodings, strict=True)
        ]
        with tqdm(total=len(requests), desc="Running generate_until requests", disable=disable_tqdm) as bar:
            answers = self.bulk.generate(makers, decodings, seed=self.seed, on_done=bar.update)
        texts = []
        for request, answer in zip(requests, answers, strict=True):
            if isinstance(answer, VilaError):
                raise answer
            self.cache_hook.add_partial("generate_until", request.args, answer.text)
            texts.append(answer.text)
        return texts

    def _prompt(self, text: str, new_tokens: int) -> Request:
        return Request(self._fitting(self.tok_encode(text), new_tokens + 1))

    def _fitting(self, context: list[int], behind: int) -> list[int]:
        """The end of a context, which leaves room for all but the last of the tokens behind it: that is not read."""
        room = self.max_length + 1 - behind
        if room < 1:
            raise PromptError(
                f"{behind} tokens are to follow a prompt, but the model's context is {self.max_length}",
                where="request",
                fix="Ask for fewer new tokens, with --gen_kwargs max_gen_toks=N.",
            )
        return context[-room:]


def main() -> None:
    """The command line of `lm-eval`, which knows `--model vila_jax`."""
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


if __name__ == "__main__":
    main()
