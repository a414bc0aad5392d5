"""POST /v1/completions as vLLM has it: what is asked, and what an answer must hold. What another try or
another server may mend is a Fault; what it will not, a UserError.

Prompts go as tokens, so that a server sees the very tokens that a local engine sees. Log-probabilities are
the model's own: vLLM gives those of the logits as they were before temperature and allowed tokens
(logprobs_mode raw_logprobs, its default; the checks at the start would notice another one).
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cai.core.errors import UserError
from cai.core.text import one_line
from cai.models.completion import completion_of
from cai.models.engine import EOS, Completion, Sampling
from cai.models.server_key import KEY, without_key

TOP = 20  # log-probabilities of a position that any server gives
TOKENS = range(2**31)  # that a tokenizer can be asked for
LOWEST = -9999.0  # how vLLM writes minus infinity
SAID = 200  # characters of a server's own words in a sentence of ours
CONNECT_SECONDS, ANSWER_SECONDS = 10.0, 900.0  # an answer may stand in the server's own queue first


class Fault(Exception):
    """down: the server itself may be gone, not only this answer. cut: it ended the connection. changed: it is
    not what it was."""

    def __init__(self, what: str, *, down: bool = False, cut: bool = False, changed: bool = False):
        super().__init__(what)
        self.down, self.cut, self.changed = down, cut, changed


@dataclass(frozen=True)
class Target:
    """Where a request goes. client: an openai.AsyncOpenAI. model: the name of the base or of an adapter."""

    client: Any
    url: str
    model: str


# ---- asking ----


@dataclass(frozen=True)
class CompletionsApi:
    """The three requests of an engine, to one server. ends: the tokens that end a text. context: tokens that
    prompt and text may have together."""

    tokenizer: Any
    ends: Sequence[int]
    context: int

    async def generate(self, at: Target, ids: Sequence[int], sampling: Sampling, seed: int) -> Completion:
        """The text is cut here, too, whatever a server takes for its end."""
        more = {"seed": seed, "stop": list(sampling.stop), "stop_token_ids": list(self.ends)}
        choice = await self._ask(at, ids, sampling.max_tokens, sampling.temperature, more)
        row = _generated_tokens(choice, sampling.max_tokens)
        done = completion_of(self.tokenizer, self.ends, row, len(ids), sampling)
        if done.finish_reason == "length" and choice["finish_reason"] == "stop":
            reason = choice.get("stop_reason")  # an end or a stop string that only the server sees
            ended_by = reason if isinstance(reason, str) else EOS
            return Completion(done.text, len(row), len(ids), "stop", ended_by)
        return done

    async def next_token(self, at: Target, ids: Sequence[int], options: Sequence[int]) -> list[float]:
        """Log-probabilities of options. vLLM gives these very tokens' where it knows logprob_token_ids, and
        else the TOP most likely ones'; what is missing is asked for by itself."""
        more = {"logprobs": TOP, "logprob_token_ids": list(options), "return_tokens_as_token_ids": True}
        found = _option_logprobs(await self._ask(at, ids, 1, 0.0, more), options)
        return [
            await self.forced(at, ids, option) if value is None else value
            for option, value in zip(options, found, strict=True)
        ]

    async def forced(self, at: Target, ids: Sequence[int], token: int) -> float:
        """The log-probability of a token that the server is made to generate."""
        more = {"allowed_token_ids": [token], "logprobs": 1, "logprob_token_ids": [token]}
        choice = await self._ask(at, ids, 1, 0.0, more | {"return_tokens_as_token_ids": True})
        [value] = _option_logprobs(choice, [token])
        if value is None:
            raise Fault("another token than the only one allowed (allowed_token_ids is ignored)")
        return value

    async def score(self, at: Target, ids: Sequence[int], last: int) -> list[float]:
        """Log-probabilities of the last tokens. A server has to generate one more: where the row fills the
        context, the last token is that one."""
        if len(ids) == self.context:
            before = await self.score(at, ids[:-1], last - 1) if last > 1 else []
            return [*before, await self.forced(at, ids[:-1], ids[-1])]
        return _prompt_logprobs(await self._ask(at, ids, 1, 0.0, {"prompt_logprobs": 0}), ids, last)

    async def _ask(
        self, at: Target, ids: Sequence[int], tokens: int, temperature: float, more: dict[str, Any]
    ) -> dict[str, Any]:
        """A checkpoint's own sampling defaults, which servers take up, must not slip into ours."""
        body = {
            "model": at.model,
            "prompt": list(ids),
            "max_tokens": tokens,
            "temperature": temperature,
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "return_token_ids": True,
        }
        return choice_of(await call(at.client, at.url + "/v1/completions", body | more))


async def call(
    client: Any, url: str, body: dict[str, Any] | None = None, seconds: float = ANSWER_SECONDS
) -> Any:
    """The JSON that a server answers to POST, or to GET where there is no body. Raises Fault or UserError."""
    import openai

    options = {"timeout": openai.Timeout(seconds, connect=CONNECT_SECONDS, pool=None)}
    try:
        async with asyncio.timeout(CONNECT_SECONDS + seconds):  # of all of it: one may come byte by byte
            if body is None:
                return await client.get(url, cast_to=object, options=options)
            return await client.post(url, cast_to=object, body=body, options=options)
    except (openai.APITimeoutError, TimeoutError):
        raise Fault(f"no answer within {seconds:.0f} s", down=True) from None
    except openai.APIConnectionError as error:
        why = type(error.__cause__).__name__ if error.__cause__ else ""
        why = f"{why} {without_key(one_line(error.__cause__ or error))[:SAID]}".strip()
        raise Fault(f"no connection ({why})", down=True, cut=True) from None
    except openai.APIStatusError as error:
        raise _refusal(url, error.status_code, words_of(error)) from None
    except (ValueError, RecursionError):
        raise Fault("an answer that is cut off or no JSON") from None


def words_of(error: Any) -> str:
    """What a server says of its refusal, in a line."""
    body = error.body if isinstance(error.body, dict) else {}
    body = body["error"] if isinstance(body.get("error"), dict) else body
    return without_key(one_line(str(body.get("message") or error.message)))[:SAID]


def _refusal(url: str, status: int, words: str) -> Exception:
    if status >= 500:
        return Fault(f"status {status} ({words})", down=True)
    if status == 404:  # a model or an adapter: it was started anew
        return Fault(f"status {status} ({words})", changed=True)
    if status in (408, 409, 425, 429):
        return Fault(f"status {status} ({words})")
    if status in (401, 403):
        return UserError(f"{url} wants a key (status {status}): set {KEY} to the one it was started with")
    return UserError(f"{url} refuses a request (status {status}: {words}): see the server's log")


# ---- what came ----


def choice_of(answer: Any) -> dict[str, Any]:
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise Fault("an answer without a choice")
    return choices[0]


def _generated_tokens(choice: dict[str, Any], most: int) -> list[int]:
    ids = choice.get("token_ids")
    if not isinstance(ids, list) or not all(type(i) is int for i in ids):
        raise Fault("a text without its tokens (return_token_ids is ignored)")
    if len(ids) > most:
        raise Fault(f"{len(ids)} tokens, {most} were asked for (max_tokens is ignored)")
    if wrong := next((i for i in ids if i not in TOKENS), None):
        raise Fault(f"a token that is none ({one_line(wrong)[:20]})")
    if choice.get("finish_reason") not in ("stop", "length"):
        raise Fault(f"a text that was broken off (finish_reason {one_line(choice.get('finish_reason'))})")
    return ids


def _option_logprobs(choice: dict[str, Any], options: Sequence[int]) -> list[float | None]:
    """Of each option, None where the answer does not hold it."""
    try:
        [top] = choice["logprobs"]["top_logprobs"]
        found = [top.get(f"token_id:{i}") for i in options]
    except (KeyError, TypeError, ValueError, AttributeError):
        raise Fault("no log-probabilities (logprobs is ignored)") from None
    return [None if v is None or _number(v) <= LOWEST else _number(v) for v in found]


def _prompt_logprobs(choice: dict[str, Any], ids: Sequence[int], last: int) -> list[float]:
    """Of the last tokens of a prompt."""
    rows = choice.get("prompt_logprobs")
    if not isinstance(rows, list) or len(rows) != len(ids):
        raise Fault("no log-probabilities of the prompt (prompt_logprobs is ignored)")
    try:
        pairs = list(zip(rows, ids, strict=True))[-last:]
        return [_number(row[str(token)]["logprob"]) for row, token in pairs]
    except (KeyError, TypeError):
        raise Fault("log-probabilities of other tokens than the prompt's") from None


def _number(value: Any) -> float:
    """A log-probability: finite, and not above 0 but for rounding."""
    if not isinstance(value, (int, float)) or not -sys.float_info.max <= value <= 1e-3:
        raise Fault(f"a log-probability that is none ({one_line(value)[:20]})")
    return min(float(value), 0.0)
