"""A teacher behind any server that speaks the OpenAI API: vLLM, llama.cpp, Ollama, transformers serve, hosted ones.

The client ``openai`` sends the requests; retries are ours (``asking``), because they share a store and a rate limit.
Requests run in an event loop, where a deadline can cut them anywhere: a server that drips its headers, its answer or
the words of an error is as late as one that hangs.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import threading
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from functools import cache
from typing import Any

from isodistill.errors import TeacherError, UserError
from isodistill.teachers.base import Answer, Messages, Sampling

__all__ = ["ServerTeacher", "open_client"]

_MESSAGE_LIMIT = 500
_MOST_BYTES = 64 * 2**20
_SHORTEST_KEY = 8
"""Characters; a shorter one is a placeholder such as EMPTY, which may stand in an honest answer, too."""
_LIMIT, _NEW_LIMIT = "max_tokens", "max_completion_tokens"
"""Two names of one limit: the one that nearly all servers know, and the one that some models of OpenAI insist on."""
_log = logging.getLogger(__name__)


def open_client(
    base_url: str, key_from: str, needed_by: str, extra: str, *, in_loop: bool = False, **options: Any
) -> tuple[Any, Any]:
    """The package ``openai`` and a client of it; the key is read from the environment and written nowhere.

    A key is stripped of what surrounds it, such as the line end of the file that it was read from.

    Args:
        base_url: of the server, such as ``http://localhost:8000/v1``.
        key_from: environment variable that holds the key; servers of one's own mostly need none.
        needed_by: what needs the package, for the message.
        extra: the extra that installs it.
        in_loop: the client for an event loop.
        options: further arguments of the client.

    Raises:
        UserError: the package is not installed, or the key could not be sent as a header.
    """
    key = _key(key_from)
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise UserError(
            f"The key in the environment variable {key_from} has a line break, a blank or a letter that is not ASCII "
            "in it, which no key has. Set it anew."
        )
    try:
        import openai
    except ImportError as error:
        raise UserError(f"{needed_by} needs the extra: pip install 'isodistill[{extra}]'.") from error
    kind = openai.AsyncOpenAI if in_loop else openai.OpenAI
    return openai, kind(base_url=base_url, api_key=key or "none", **options)


class ServerTeacher:
    """Asks ``/chat/completions`` of a server.

    A server that refuses ``max_tokens`` and names ``max_completion_tokens`` instead gets that from then on.

    Args:
        name: of the teacher; without the address, so that the same model behind another port is the same teacher.
        model: the name under which the server has the model.
        base_url: of the server.
        key_from: environment variable that holds the key.
        timeout: seconds for one request, from connecting to the last byte.

    Raises:
        UserError: the package ``openai`` is not installed.
    """

    def __init__(self, name: str, model: str, base_url: str, key_from: str, timeout: float) -> None:
        self.name = name
        self._model, self._base_url, self._key_from, self._timeout = model, base_url, key_from, timeout
        self._openai, self._client = open_client(
            base_url, key_from, "A teacher of kind server", "teacher", in_loop=True, max_retries=0, timeout=None
        )
        self._limit = _LIMIT
        self._loop = _loop()

    def answer(self, messages: Messages, sampling: Sampling) -> Answer:
        """See ``Teacher.answer``; many servers know no n and give one text at a time.

        Raises:
            TeacherError: this request failed; ``retry`` says whether another try can help.
            UserError: the server refuses the key or does not know the model, so no request can succeed.
        """
        reply = self._reply(self._body(messages, sampling))
        choices = _choices(reply)[: sampling.n]
        return Answer(
            texts=tuple(self._without_key(_text(choice)) for choice in choices),
            finish_reasons=tuple(
                self._without_key(str(choice.get("finish_reason") or "unknown")) for choice in choices
            ),
            prompt_tokens=_count(reply, "prompt_tokens"),
            completion_tokens=_count(reply, "completion_tokens"),
            logprobs=tuple(_logprobs(choice) for choice in choices) if sampling.logprobs else None,
            more=len(choices) < sampling.n,
        )

    def _body(self, messages: Messages, sampling: Sampling) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self._model,
            "messages": [dict(message) for message in messages],
            self._limit: sampling.max_tokens,
            "temperature": sampling.temperature,
            "seed": sampling.seed % 2**31,  # servers take 32 bits
        }
        if sampling.n > 1:
            body["n"] = sampling.n
        if sampling.top_p < 1:
            body["top_p"] = sampling.top_p
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        if sampling.logprobs:
            body |= {"logprobs": True, "top_logprobs": sampling.logprobs}
        return body

    def _reply(self, body: dict[str, Any]) -> Mapping[str, Any]:
        """The reply to a request, sent once more where the server wants its limit under the other name."""
        try:
            return self._post(body)
        except TeacherError as error:
            if error.retry or _LIMIT not in body or _NEW_LIMIT not in str(error):
                raise
        if self._limit == _LIMIT:
            self._limit = _NEW_LIMIT
            _log.warning("%s: model %s wants max_completion_tokens instead of max_tokens.", self._base_url, self._model)
        return self._post({_NEW_LIMIT if key == _LIMIT else key: value for key, value in body.items()})

    def _post(self, body: dict[str, Any]) -> Mapping[str, Any]:
        """The reply as JSON, whole and in time."""
        content = bytearray()
        try:
            asyncio.run_coroutine_threadsafe(self._read(body, content), self._loop).result()
        except TimeoutError:
            whole = "whole " if content else ""
            raise TeacherError(f"no {whole}answer within {self._timeout:g} s.", retry=True) from None
        except self._openai.APIStatusError as error:
            raise self._refusal(error) from None
        except self._openai.APIConnectionError as error:
            raise TeacherError(f"no connection: {self._told(error.__cause__ or error)}.", retry=True) from None
        except TeacherError:
            raise
        except Exception as error:  # noqa: BLE001  the transport's own errors, raised while the body is read
            raise TeacherError(f"the connection broke: {self._told(error)}.", retry=True) from None
        return _json(bytes(content))

    async def _read(self, body: dict[str, Any], content: bytearray) -> None:
        """Send a request and read the body of its answer into ``content``."""
        create = self._client.chat.completions.with_streaming_response.create
        # As extra_body, because the client looks at every field of a message that it is given as a message.
        asked = create(model=body["model"], messages=(), extra_body=body)
        async with asyncio.timeout(self._timeout), asked as response:
            async for part in response.iter_bytes():
                content += part
                if len(content) > _MOST_BYTES:
                    raise TeacherError("an answer of more than 64 MiB.", retry=True)

    def _refusal(self, error: Any) -> Exception:
        """What a status other than 2xx means: for the whole run, for this request, or for this try."""
        status, where = error.status_code, f"{self._base_url}, model {self._model!r}"
        if status == 401:
            given = "refuses the key in" if _key(self._key_from) else "wants a key, and there is none in"
            return UserError(f"{self._base_url} {given} the environment variable {self._key_from}.")
        if status == 403:
            return UserError(f"{where}: the key in {self._key_from} may not use this model (status 403).")
        told = self._told(error.body if error.body is not None else error)
        if status == 404 or getattr(error, "code", None) == "model_not_found":
            return UserError(f"{where}: not found ({told}). Check the teacher's model and base_url, which ends in /v1.")
        if status == 429 and "insufficient_quota" in told:
            return UserError(f"{where}: no money is left there ({told}).")
        retry = status in (408, 409, 425, 429) or status >= 500
        return TeacherError(f"status {status}: {told}", retry=retry, after=_retry_after(error.response.headers))

    def _told(self, error: object) -> str:
        """The words of an error in one short line, without the key."""
        message = error.get("message") if isinstance(error, Mapping) else None
        text = " ".join(self._without_key(str(message or error), shortest=1).split())
        return text[:_MESSAGE_LIMIT] or type(error).__name__  # cut last: half a key would not be found

    def _without_key(self, text: str, shortest: int = _SHORTEST_KEY) -> str:
        """A text in which a server echoed the key, with ``***`` in its place."""
        key = _key(self._key_from)
        return text.replace(key, "***") if len(key) >= shortest else text


def _key(key_from: str) -> str:
    return os.environ.get(key_from, "").strip()


@cache
def _loop() -> asyncio.AbstractEventLoop:
    """The event loop of this process's clients, in a thread of its own."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="teachers", daemon=True).start()
    return loop


def _json(content: bytes) -> Mapping[str, Any]:
    try:
        reply = json.loads(content.decode("utf-8"))
    except UnicodeDecodeError:
        raise TeacherError("the answer is not UTF-8.", retry=True) from None
    except (ValueError, RecursionError) as error:
        raise TeacherError(f"the answer is not JSON ({error}).", retry=True) from None
    if not isinstance(reply, dict):
        raise TeacherError("the answer is no JSON object.", retry=True)
    return reply


def _choices(reply: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    choices = reply.get("choices")
    if not isinstance(choices, list) or not choices:
        raise TeacherError("the answer has no choices.", retry=True)
    for choice in choices:
        if not isinstance(choice, dict) or not isinstance(choice.get("message"), dict):
            raise TeacherError("a choice of the answer has no message.", retry=True)
    return choices


def _text(choice: Mapping[str, Any]) -> str:
    """The text of a choice; some servers give it as a list of parts."""
    content = choice["message"].get("content")
    if isinstance(content, list) and all(isinstance(p, dict) and isinstance(p.get("text"), str) for p in content):
        return "".join(part["text"] for part in content)
    if not isinstance(content, str | None):
        raise TeacherError(f"a choice of the answer holds no text, but a {type(content).__name__}.", retry=False)
    return content or ""


def _count(reply: Mapping[str, Any], name: str) -> int | None:
    """A number of tokens; None where the server does not tell one."""
    usage = reply.get("usage")
    count = usage.get(name) if isinstance(usage, dict) else None
    return count if type(count) is int and count >= 0 else None


def _logprobs(choice: Mapping[str, Any]) -> tuple[dict[str, float], ...]:
    try:
        tokens = choice["logprobs"]["content"]
        told = tuple({top["token"]: float(top["logprob"]) for top in token["top_logprobs"]} for token in tokens)
        if all(math.isfinite(value) for token in told for value in token.values()):
            return told
        raise ValueError("infinite")
    except (KeyError, TypeError, ValueError):
        why = "log-probs were asked for, and the server gave none, or one that is no number."
        raise TeacherError(why, retry=False) from None


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds, from a number or a date."""
    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None
