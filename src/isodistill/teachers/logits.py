"""Log-probs of a teacher on disk: the top k of every trained token after the full softmax, and the mass of the rest.

A cache is a folder of safetensors shards and an ``index.json`` that says whose log-probs they are and where each text
lies. With k = 64 a token takes 64 x (4 + 2) + 4 bytes: ids as int32, log-probs as float16, log tail mass as float32.

    cache = LogitCache(folder, made_by(teacher_name, revision, tokenizer, n_vocab), k=64)
    fill_cache(cache, teacher_model, encoded_rows)
    top = cache.read(encoded_rows[0].input_ids)      # TopK: positions (P,), ids (P, k), log_probs (P, k), log_tail (P,)
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from isodistill.data.encode import IGNORE_INDEX, Encoded
from isodistill.data.files import write_lines
from isodistill.errors import UserError
from isodistill.models.hidden import body_states, logits_of
from isodistill.teachers.vocabulary import template_hash, tokenizer_hash

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "CacheMaker",
    "Distance",
    "LogitCache",
    "NotFiniteError",
    "TopK",
    "distance",
    "fill_cache",
    "joined",
    "made_by",
    "top_k",
    "trained_positions",
]

_SCHEMA = 1
_LEAST = torch.finfo(torch.float16).min  # a log-prob below it is stored as this, which is probability 0 all the same


@dataclass(frozen=True)
class CacheMaker:
    """Whose log-probs a cache holds; all of it is part of every key.

    Attributes:
        teacher: name of the model.
        revision: of its weights.
        tokenizer: ``tokenizer_hash``.
        template: ``template_hash``.
        temperature: log-probs are those of softmax(logits / temperature).
        n_vocab: ids that take part in the softmax; logits are cut to them first.
    """

    teacher: str
    revision: str
    tokenizer: str
    template: str
    temperature: float
    n_vocab: int


class NotFiniteError(ValueError):
    """A teacher's logit is NaN or infinite."""


class TopK(NamedTuple):
    """The k largest log-probs after the softmax over all ids, at the P trained positions of one text.

    Attributes:
        positions: (P,) int64; the logits at position t speak of the token at t + 1.
        ids: (P, k) int64, the most probable first.
        log_probs: (P, k) float32.
        log_tail: (P,) float32, log of the mass of all other ids; -inf where there is none (k = n_vocab).
        temperature: of that softmax.
        n_vocab: ids that took part in it; 0 where all of a student's do.
    """

    positions: torch.Tensor
    ids: torch.Tensor
    log_probs: torch.Tensor
    log_tail: torch.Tensor
    temperature: float = 1.0
    n_vocab: int = 0

    @property
    def tensors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """What has one row per position."""
        return self.positions, self.ids, self.log_probs, self.log_tail

    def at(self, rows: slice | torch.Tensor) -> TopK:
        """Some of the positions."""
        positions, ids, log_probs, log_tail = (values[rows] for values in self.tensors)
        return TopK(positions, ids, log_probs, log_tail, self.temperature, self.n_vocab)

    def to(self, device: torch.device) -> TopK:
        """The same on a device."""
        positions, ids, log_probs, log_tail = (values.to(device) for values in self.tensors)
        return TopK(positions, ids, log_probs, log_tail, self.temperature, self.n_vocab)


def joined(parts: Sequence[TopK]) -> TopK:
    """The positions of several texts one after the other; temperature and vocabulary are those of the first."""
    columns = zip(*(part.tensors for part in parts), strict=True)
    positions, ids, log_probs, log_tail = (torch.cat(values) for values in columns)
    return TopK(positions, ids, log_probs, log_tail, parts[0].temperature, parts[0].n_vocab)


class Distance(NamedTuple):
    """How far stored log-probs lie from live ones: the largest difference of a log-prob, and of a tail's mass."""

    log_prob: float
    tail: float


def made_by(
    teacher: str, revision: str, tokenizer: PreTrainedTokenizerBase, n_vocab: int, temperature: float = 1.0
) -> CacheMaker:
    """The maker of a cache, with the hashes of its tokenizer; see ``CacheMaker``."""
    return CacheMaker(teacher, revision, tokenizer_hash(tokenizer), template_hash(tokenizer), temperature, n_vocab)


def top_k(logits: torch.Tensor, positions: torch.Tensor, k: int, *, n_vocab: int, temperature: float = 1.0) -> TopK:
    """The log-probs that a cache keeps, from live logits (P, V) at ``positions`` (P,).

    log p = log_softmax(logits[:, :n_vocab] / temperature) in float32, over **all** n_vocab ids; the tail is the log of
    the summed mass outside the top k.

    Raises:
        ValueError: k or n_vocab is larger than what there is.
        NotFiniteError: a logit is not finite; names the position.
    """
    if not 0 < k <= n_vocab <= logits.shape[-1]:
        raise ValueError(f"k = {k}, n_vocab = {n_vocab} and {logits.shape[-1]} logits; expected 0 < k <= n_vocab <= V")
    log_p = torch.log_softmax(logits[:, :n_vocab].float() / temperature, -1)
    finite = torch.isfinite(log_p).all(1)
    if not finite.all():
        first = int(positions.to(finite.device)[~finite][0])
        raise NotFiniteError(f"the teacher's logits are not finite at position {first}")
    log_probs, ids = log_p.topk(k, dim=-1)
    tail = log_p.scatter(-1, ids, -torch.inf).logsumexp(-1)
    return TopK(positions, ids, log_probs, tail, temperature, n_vocab)


def distance(cached: TopK, live: TopK) -> Distance:
    """The distance of a stored text from live values at the same positions.

    Log-probs are compared id by id: an id of ``cached`` that is not among the top k of ``live`` lies no higher there
    than the k-th, whose log-prob then stands for it.

    Raises:
        ValueError: other positions.
    """
    if not torch.equal(cached.positions, live.positions):
        raise ValueError("the two speak of different positions")
    same = cached.ids[:, :, None] == live.ids[:, None, :]
    found = torch.where(same, live.log_probs[:, None, :], -torch.inf).amax(-1)
    found = torch.where(same.any(-1), found, live.log_probs[:, -1:])
    differences = (cached.log_probs - found).abs()
    tails = (cached.log_tail.exp() - live.log_tail.exp()).abs()
    return Distance(*(float(values.max()) if values.numel() else 0.0 for values in (differences, tails)))


class LogitCache:
    """A folder of stored log-probs, opened to read and to add; one process at a time writes.

    Texts are written in shards of about ``shard_tokens`` positions: a shard, then the index, each whole or not at all.
    A killed process loses the texts since its last shard, which are then simply not in the cache.

    Args:
        folder: made when missing.
        maker: whose log-probs; a folder of another teacher, tokenizer, template, temperature or vocabulary is refused.
        k: log-probs per position; likewise.
        shard_tokens: positions in one file.

    Raises:
        UserError: the folder is another cache, or its index is damaged.
    """

    def __init__(self, folder: Path, maker: CacheMaker, *, k: int = 64, shard_tokens: int = 65536) -> None:
        self.folder, self.maker, self.k, self.shard_tokens = folder, maker, min(k, maker.n_vocab), shard_tokens
        self._places: dict[str, list[int]] = {}  # key -> number of the shard, first row, end
        self._digests: list[str] = []
        self._waiting: dict[str, TopK] = {}
        self._open: tuple[int, dict[str, torch.Tensor]] | None = None
        if (folder / "index.json").exists():
            self._read_index()

    def __contains__(self, input_ids: Sequence[int]) -> bool:
        return self._key(input_ids) in self._places or self._key(input_ids) in self._waiting

    def __len__(self) -> int:
        return len(self._places) + len(self._waiting)

    def write(self, input_ids: Sequence[int], positions: torch.Tensor, logits: Iterable[torch.Tensor]) -> None:
        """Add one text: its token ids, the trained positions (P,) and the teacher's logits (n, V) there, in pieces.

        A text that is there already is left as it is. What is written reaches the disk with its shard, or at ``flush``.

        Raises:
            NotFiniteError: a logit is not finite.
        """
        if input_ids in self:
            return
        maker, parts, start = self.maker, [], 0
        for piece in logits:
            here = positions[start : start + len(piece)]
            part = top_k(piece, here, self.k, n_vocab=maker.n_vocab, temperature=maker.temperature)
            parts.append(part.to(torch.device("cpu")))
            start += len(piece)
        self._waiting[self._key(input_ids)] = joined(parts)
        if sum(len(waiting.positions) for waiting in self._waiting.values()) >= self.shard_tokens:
            self.flush()

    def flush(self) -> None:
        """Write what waits as one more shard.

        Raises:
            UserError: the disk is full or the folder cannot be written.
        """
        if not self._waiting:
            return
        shard = joined(list(self._waiting.values()))
        data = save(
            {
                "positions": shard.positions.to(torch.int32),
                "ids": shard.ids.to(torch.int32),
                "log_probs": shard.log_probs.clamp(min=_LEAST).to(torch.float16),
                "log_tail": shard.log_tail.float(),
            }
        )
        number = len(self._digests)
        self._write_shard(self._shard(number), data)
        self._digests.append(hashlib.sha256(data).hexdigest())
        start = 0
        for key, top in self._waiting.items():
            self._places[key] = [number, start, start + len(top.positions)]
            start += len(top.positions)
        self._waiting.clear()
        write_lines(self.folder / "index.json", [json.dumps(self._index())])

    def read(self, input_ids: Sequence[int]) -> TopK:
        """The log-probs of one text, as stored (float16 rounds a log-prob by at most 1 part in 2,048).

        Raises:
            UserError: the text is not in the cache (it is never asked of another teacher), or its shard is damaged.
        """
        if self._key(input_ids) in self._waiting:
            self.flush()
        if self._key(input_ids) not in self._places:
            raise UserError(
                f"{self.folder} has no log-probs of {self.maker.teacher} for a text of {len(input_ids)} tokens. "
                "Fill the cache from the same rows, tokenizer and chat template that are trained on."
            )
        number, start, end = self._places[self._key(input_ids)]
        tensors = self._load_shard(number)
        return TopK(
            tensors["positions"][start:end].long(),
            tensors["ids"][start:end].long(),
            tensors["log_probs"][start:end].float(),
            tensors["log_tail"][start:end],
            self.maker.temperature,
            self.maker.n_vocab,
        )

    def _key(self, input_ids: Sequence[int]) -> str:
        return hashlib.sha256(json.dumps([asdict(self.maker), list(input_ids)]).encode()).hexdigest()

    def _shard(self, number: int) -> Path:
        return self.folder / f"shard-{number:05d}.safetensors"

    def _index(self) -> dict[str, Any]:
        made = {"schema": _SCHEMA, "made_by": asdict(self.maker), "k": self.k}
        return {**made, "shards": self._digests, "texts": self._places}

    def _read_index(self) -> None:
        path = self.folder / "index.json"
        try:
            index = json.loads(path.read_text(encoding="utf-8"))
            before = index["made_by"] | {"k": index["k"], "schema": index["schema"]}
            self._digests, self._places = list(index["shards"]), dict(index["texts"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path} is damaged ({type(error).__name__}: {error}). Delete the folder and fill the cache again."
            ) from error
        now = asdict(self.maker) | {"k": self.k, "schema": _SCHEMA}
        names = [name for name, value in now.items() if before.get(name) != value]
        if names:
            changes = "; ".join(f"{name} was {before.get(name)!r} and is {now[name]!r}" for name in names)
            raise UserError(
                f"{self.folder} holds log-probs that were made otherwise: {changes}. Go back to those settings, or "
                "fill another folder; what lies there stays as it is."
            )

    def _write_shard(self, path: Path, data: bytes) -> None:
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError as error:
            raise UserError(
                f"{path} cannot be written: {error.strerror or error}. Free some space and go on."
            ) from error
        finally:
            temporary.unlink(missing_ok=True)

    def _load_shard(self, number: int) -> dict[str, torch.Tensor]:
        if self._open is not None and self._open[0] == number:
            return self._open[1]
        path = self._shard(number)
        try:
            data = path.read_bytes()
            if hashlib.sha256(data).hexdigest() != self._digests[number]:
                raise ValueError("its bytes are not those that were written")
            tensors: dict[str, torch.Tensor] = load(data)
        except (OSError, ValueError, IndexError, SafetensorError) as error:
            raise UserError(f"{path} is damaged: {error}. Delete {self.folder} and fill the cache again.") from error
        self._open = (number, tensors)
        return tensors


@torch.no_grad()
def fill_cache(cache: LogitCache, model: PreTrainedModel, rows: Iterable[Encoded], *, batch_size: int = 8) -> int:
    """Write the teacher's log-probs at every trained token of the rows that are not in the cache yet; how many rows.

    Rows of a batch are padded on the right; a causal teacher never sees the padding from the trained positions. Only
    these reach its head, 256 at a time.

    Raises:
        UserError: the teacher's logits are not finite at a row.
    """
    todo = [row for row in rows if row.input_ids not in cache]
    device = next(model.parameters()).device
    model.eval()
    for start in range(0, len(todo), batch_size):
        batch = todo[start : start + batch_size]
        longest = max(len(row.input_ids) for row in batch)
        ids = torch.tensor([row.input_ids + [0] * (longest - len(row.input_ids)) for row in batch], device=device)
        seen = torch.tensor([[i < len(row.input_ids) for i in range(longest)] for row in batch], device=device)
        for row, states in zip(batch, body_states(model, ids, seen.long()), strict=True):
            positions = trained_positions(row)
            try:
                cache.write(row.input_ids, positions, logits_of(model, states[positions.to(device)]))
            except NotFiniteError as error:
                raise UserError(
                    f"Row {row.row_id}: {error} of its {len(row.input_ids)} tokens. The teacher's weights are damaged, "
                    "or overflow in its dtype: load it in float32, or take the row out."
                ) from error
    cache.flush()
    return len(todo)


def trained_positions(row: Encoded) -> torch.Tensor:
    """(P,) the positions whose logits are trained: t where the label at t + 1 is not ignored."""
    return torch.tensor([t for t, label in enumerate(row.labels[1:]) if label != IGNORE_INDEX], dtype=torch.long)
