"""conversations and codes → shards of ids.

A chunk of samples is the unit of work: any process makes the same bytes of it, the main process alone
writes them, and a chunk whose shard is there is not made again. So whatever stops a run, another run
continues it and ends with the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import re
import signal
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NoReturn

import numpy as np
from jinja2 import TemplateError

from ..files import is_remote, locked, write_atomic
from ..processing.control_tokens import ControlTokens
from ..processing.processing_being_vl import BeingVLProcessor
from ..processing.template_limits import BrokenTemplateError
from ..quantizers.video_loading import FrameMetadata
from .codes import CodeIndex, build_index, codes_identity, normal_id, positions_of
from .conversations import Conversation, parse_sample
from .identity import compare, processor_identity
from .quantizing.decoding import end_with_parent
from .ray_engine import ray_map
from .sources import SampleSource, decode_sample
from .tokenized import COUNTS, check_finished, claim, finish, read_report, shard_bytes, shard_path

# Codes by kind and id: of an image (h, w); of a video (T, h, w) and the time of each frame.
Grids = dict[tuple[str, str], Any]
_BATCH = 64  # samples through the processor at once
_STAND_IN = np.zeros((1, 1), np.int32)
_INDEX_FILE = ".code-index.npy"
_GENERATION = re.compile(r"{%-?\s*generation\b")


@dataclass(frozen=True)
class TokenizeSettings:
    """What decides the ids, besides data, codes and tokenizer.

    Args:
        source: what the column `source` says.
        on_missing: an image without codes: `"raise"`, `"skip"` the sample, or leave the image out (`"text"`).
        max_length: most tokens of a sample; None for no limit.
        on_too_long: a longer sample: `"raise"` or `"skip"`. No sample is ever cut.
        on_control_token: text that spells a special token of the tokenizer: `"raise"` or `"skip"` the sample.
        on_bad_row: anything else that is wrong with a sample: `"raise"`, `"skip"` it, or `"fix"`: put
            placeholders that are missing in front, as LLaVA's loaders do, and skip what that does not mend.
        image_root: what stands before the ids of `being-vl encode` in the data's names of images.
        shard_size: samples in a shard.
        dropout: the probability that a merge of an image is left out where it applies (BPE-dropout, see
            `ImageBPE.encode`). Not of videos, which are then refused.
        seed: of dropout. What is left out follows from it, the id of the sample, the place of the image in the
            sample and its id, so from neither processes nor order; another seed gives other tokens of each image.

    Raises:
        ValueError: a number is not positive, or dropout not in [0, 1].
    """

    source: str
    on_missing: Literal["raise", "skip", "text"] = "raise"
    max_length: int | None = None
    on_too_long: Literal["raise", "skip"] = "raise"
    on_control_token: Literal["raise", "skip"] = "raise"
    on_bad_row: Literal["raise", "skip", "fix"] = "raise"
    image_root: str = ""
    shard_size: int = 2048
    dropout: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("max_length", "shard_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not 0 <= self.dropout <= 1:
            raise ValueError(f"dropout must be a probability in [0, 1], got {self.dropout!r}")

    def identity(self) -> dict[str, Any]:
        """What a folder says of them. Dropout and its seed only where they decide ids."""
        said = asdict(self)
        if not self.dropout:
            del said["dropout"], said["seed"]
        return said


Chunk = list[tuple[int, Any, str]]  # number of a sample, what its source gives, its name in errors


class _LeftOut(Exception):
    """A sample that a setting leaves out; `reason` and, if one is the cause, `image_id`."""

    def __init__(self, reason: str, image_id: str | None = None):
        super().__init__(reason)
        self.reason, self.image_id = reason, image_id


class _Refused(ValueError):
    """A sample that a setting refuses; its message names the option."""


class ChunkTokenizer:
    """Makes the shard of a chunk of samples; the same bytes in every process."""

    def __init__(
        self, processor: BeingVLProcessor, index: CodeIndex | None, settings: TokenizeSettings
    ):
        if not _GENERATION.search(str(processor.chat_template)):
            raise ValueError(
                "the chat template has no {% generation %} around what the assistant says, so that nothing "
                "would be learned; being-vl init gives a checkpoint one that has"
            )
        self._processor = processor
        self._index = index
        self._settings = settings
        self._control = ControlTokens(processor.tokenizer, self._ids_of)

    def __call__(self, chunk: Chunk) -> bytes:
        self._skipped: list[dict[str, Any]] = []
        self._counts = dict.fromkeys(COUNTS, 0)
        columns: dict[str, Any] = defaultdict(list)
        read = self._read(chunk)
        grids = self._grids([c for c, _ in read])
        image_tokens = self._image_tokens(grids)
        kept = []
        for conversation, where in read:
            whole = self._attempt(conversation, where, self._with_codes, conversation, where, grids)
            if whole is not None:
                kept.append((whole, where))
        for start in range(0, len(kept), _BATCH):
            batch = kept[start : start + _BATCH]
            encoded = self._encode([c for c, _ in batch], grids)
            for (conversation, where), pair in zip(batch, encoded, strict=True):
                checked = self._attempt(
                    conversation, where, self._check, conversation, where, pair, image_tokens, grids
                )
                if checked is None:
                    continue
                ids, mask = checked
                columns["id"].append(conversation.id)
                columns["source"].append(self._settings.source)
                columns["image_ids"].append(conversation.image_ids)
                columns["video_ids"].append(conversation.video_ids)
                columns["input_ids"].append(ids)
                columns["assistant_masks"].append(mask)
                columns["length"].append(len(ids))
                self._count(conversation, where, ids, mask, grids)
        return shard_bytes(columns, {**self._counts, "skipped": self._skipped})

    def _attempt(
        self, conversation: Conversation | None, where: str, step: Callable[..., Any], *args: Any
    ) -> Any:
        """What a step gives, or None where the settings leave the sample out, which is then written down."""
        try:
            return step(*args)
        except _LeftOut as left_out:
            reason, image_id = left_out.reason, left_out.image_id
        except ValueError as error:
            if self._settings.on_bad_row == "raise":
                refused = isinstance(error, _Refused)
                hint = "" if refused else "; --on-bad-row skip leaves such samples out"
                raise ValueError(f"{error}{hint}") from error
            reason, image_id = str(error).removeprefix(f"{where}: "), None
        self._counts["skipped_samples"] += 1
        self._write_down(where, conversation.id if conversation else None, image_id, reason)
        return None

    def _write_down(self, where: str, name: str | None, image_id: str | None, reason: str) -> None:
        self._skipped.append({"sample": where, "id": name, "image_id": image_id, "reason": reason})

    def _read(self, chunk: Chunk) -> list[tuple[Conversation, str]]:
        fix = self._settings.on_bad_row == "fix"
        kept = []
        for number, raw, where in chunk:

            def read(number: int = number, raw: Any = raw, where: str = where) -> Conversation:
                return parse_sample(decode_sample(raw, where), where=where, number=number, fix=fix)

            conversation = self._attempt(None, where, read)
            if conversation is not None:
                kept.append((conversation, where))
        return kept

    def _grids(self, conversations: Sequence[Conversation]) -> Grids:
        """Codes by the ids that the samples use; a name that is not known is looked up in its normal form."""
        if self._index is None:
            return {}
        images = {name for conversation in conversations for name in conversation.image_ids}
        videos = {name for conversation in conversations for name in conversation.video_ids}
        return self._looked_up("image", images, self._index.lookup) | self._looked_up(
            "video", videos, self._index.lookup_videos
        )

    def _looked_up(
        self, medium: str, names: set[str], lookup: Callable[[Iterable[str]], dict[str, Any]]
    ) -> Grids:
        found = lookup(names)
        normal = {
            name: normal_id(name, self._settings.image_root)
            for name in sorted(names - found.keys())
        }
        others = lookup(normal.values())
        found |= {name: others[other] for name, other in normal.items() if other in others}
        return {(medium, name): codes for name, codes in found.items()}

    def _with_codes(self, conversation: Conversation, where: str, grids: Grids) -> Conversation:
        """The sample, if its images and videos are there, after what the settings do with the others."""
        missing = [key for key in dict.fromkeys(_keys(conversation)) if key not in grids]
        if not missing:
            return conversation
        medium, name = missing[0]
        why = "no --codes given" if self._index is None else f"no codes for this {medium}"
        if self._settings.on_missing == "raise":
            hint = self._nearest(name) if self._settings.on_bad_row == "raise" else ""
            raise _Refused(
                f"{where}: {medium} {name!r}: {why}{hint}; --on-missing skip leaves such samples out, "
                f"--on-missing text keeps them without the {medium}"
            )
        if self._settings.on_missing == "skip":
            raise _LeftOut(why, name)
        rest = conversation.without(missing)
        if any(m["role"] == "assistant" and not m["content"] for m in rest.messages):
            raise _LeftOut(f"{why}, and it is all that the assistant says", name)
        for _, name in missing:
            self._write_down(where, conversation.id, name, why)
        return rest

    def _nearest(self, image_id: str) -> str:
        if self._index is None:
            return ""
        near = self._index.nearest(image_id)
        hint = f" (the nearest known id is {near!r}; --image-root, --id-column)"
        return "" if near is None else hint

    def _image_tokens(self, grids: Grids) -> dict[str, np.ndarray | ValueError]:
        """The token ids of each image, without begin and end tokens, or why it has none."""
        images = {name: codes for (medium, name), codes in grids.items() if medium == "image"}
        encode = self._processor.tokenizer.encode_codes
        try:
            return dict(zip(images, encode(images.values()), strict=True))
        except ValueError:  # to name the sample
            found: dict[str, np.ndarray | ValueError] = {}
            for name, codes in images.items():
                try:
                    found[name] = encode([codes])[0]
                except ValueError as error:
                    found[name] = error
            return found

    def _encode(
        self, batch: list[Conversation], grids: Grids
    ) -> list[tuple[np.ndarray, np.ndarray] | ValueError]:
        """Ids int32 and assistant masks int8 of each sample, or why there are none.

        Each image is one cell here, and one token: a tokenizer takes longer for the text of an image's tokens
        than for all else, and a data set asks many questions about one image. `_with_images` puts them in.
        """
        images = [[_STAND_IN] * len(conversation.image_ids) for conversation in batch]
        videos = [[grids["video", i] for i in conversation.video_ids] for conversation in batch]
        given: dict[str, Any] = {"image_codes": images} if any(images) else {}
        if any(videos):
            given["video_codes"] = [[codes for codes, _ in own] for own in videos]
            given["video_metadata"] = [_metadata(*clip) for own in videos for clip in own]
        try:
            encoded: Any = self._processor.apply_chat_template(
                [conversation.messages for conversation in batch],
                tokenize=True,
                return_dict=True,
                return_assistant_tokens_mask=True,
                processor_kwargs=given,
            )
        except BrokenTemplateError:  # no sample's fault
            raise
        except (ValueError, TemplateError) as error:
            if len(batch) == 1:
                return [ValueError(str(error))]
            return [one for c in batch for one in self._encode([c], grids)]  # to name the sample
        return [
            (np.asarray(ids, np.int32), np.asarray(mask, np.int8))
            for ids, mask in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True)
        ]

    def _ids_of(self, messages: list[dict[str, Any]]) -> list[int]:
        encoded: Any = self._processor.apply_chat_template(
            [messages], tokenize=True, return_dict=True
        )
        return encoded["input_ids"][0]

    def _check(
        self,
        conversation: Conversation,
        where: str,
        encoded: tuple[np.ndarray, np.ndarray] | ValueError,
        image_tokens: dict[str, np.ndarray | ValueError],
        grids: Grids,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Ids and mask of a sample, after all that can be wrong with them."""
        if isinstance(encoded, ValueError):
            raise ValueError(f"{where}: {encoded}")
        ids, mask = encoded
        settings = self._settings
        token = self._control.find(conversation.messages, ids)
        if token is not None:
            reason = f"its text spells the special token {token!r}"
            self._leave_out("on_control_token", where, reason)
        if settings.dropout and conversation.video_ids:
            name = conversation.video_ids[0]
            raise ValueError(
                f"{where}: video {name!r}: dropout must be 0 where samples have videos"
            )
        images = []
        for place, name in enumerate(conversation.image_ids):
            tokens = image_tokens[name]
            if isinstance(tokens, ValueError):
                raise ValueError(f"{where}: image {name!r}: {tokens}")
            if settings.dropout:
                tokens = self._with_dropout(grids["image", name], conversation.id, place, name)
            images.append(tokens)
        ids, mask = self._with_images(ids, mask, images)
        if settings.max_length is not None and len(ids) > settings.max_length:
            reason = f"{len(ids)} tokens, but max_length is {settings.max_length}"
            self._leave_out("on_too_long", where, reason)
        mask = _learned_mask(conversation, mask, where)
        if not mask[1:].any():
            raise ValueError(f"{where}: the chat template marks no token of it as the assistant's")
        return ids, mask

    def _with_dropout(self, codes: np.ndarray, *drawn_from: str | int) -> np.ndarray:
        """The token ids of an image with merges left out, drawn from what names this use of it."""
        dropout, seed = self._settings.dropout, self._settings.seed
        digest = hashlib.sha256(json.dumps([seed, *drawn_from]).encode()).digest()
        encode = self._processor.tokenizer.encode_codes
        return encode([codes], dropout=dropout, seed=int.from_bytes(digest, "little"))[0]

    def _with_images(
        self, ids: np.ndarray, mask: np.ndarray, images: Sequence[np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Ids and mask of a sample with the tokens of its images, each in place of the one that stands for it."""
        tokenizer = self._processor.tokenizer
        is_frame = tokenizer.open_videos(ids) > 0
        places = np.flatnonzero((ids == tokenizer.boi_token_id) & ~is_frame) + 1
        lengths = np.ones(len(ids), np.int64)
        lengths[places] = [len(tokens) for tokens in images]
        whole = np.repeat(ids, lengths)
        starts = np.cumsum(lengths)[places] - lengths[places]
        for start, tokens in zip(starts, images, strict=True):
            whole[start : start + len(tokens)] = tokens
        return whole, np.repeat(mask, lengths)

    def _leave_out(self, setting: str, where: str, reason: str) -> NoReturn:
        if getattr(self._settings, setting) == "raise":
            option = setting.replace("_", "-")
            raise _Refused(f"{where}: {reason}; --{option} skip leaves such samples out")
        raise _LeftOut(reason)

    def _count(
        self,
        conversation: Conversation,
        where: str,
        ids: np.ndarray,
        mask: np.ndarray,
        grids: Grids,
    ) -> None:
        layout = self._processor.tokenizer.layout
        counts = self._counts
        counts["samples"] += 1
        counts["tokens"] += len(ids)
        counts["assistant_tokens"] += int(mask.sum())
        counts["images"] += len(conversation.image_ids)
        counts["videos"] += len(conversation.video_ids)
        counts["image_tokens"] += int(((ids >= layout.first_code_id) & (ids < layout.size)).sum())
        counts["cells"] += sum(grids["image", i].size for i in conversation.image_ids)
        counts["cells"] += sum(grids["video", i][0].size for i in conversation.video_ids)
        if conversation.fixed:
            counts["fixed_samples"] += 1
            self._write_down(where, conversation.id, None, f"kept: {conversation.fixed}")


def _keys(conversation: Conversation) -> list[tuple[str, str]]:
    """Its images and videos, by kind and id."""
    return [("image", name) for name in conversation.image_ids] + [
        ("video", name) for name in conversation.video_ids
    ]


def _metadata(codes: np.ndarray, times: np.ndarray) -> FrameMetadata:
    known = None if np.isnan(times).any() else times.tolist()
    return FrameMetadata(
        total_num_frames=len(codes), frames_indices=list(range(len(codes))), frame_times=known
    )


def _learned_mask(conversation: Conversation, mask: np.ndarray, where: str) -> np.ndarray:
    """The assistant mask without the turns that are not to be learned."""
    if all(conversation.learned):
        return mask
    starts = np.flatnonzero(np.diff(mask, prepend=0) == 1)
    ends = np.flatnonzero(np.diff(mask, append=0) == -1) + 1
    if len(starts) != len(conversation.learned):
        raise ValueError(
            f"{where}: a turn is not to be learned, but the chat template marks {len(starts)} turns of the "
            f"{len(conversation.learned)} that the assistant has"
        )
    mask = mask.copy()
    for start, end, learned in zip(starts, ends, conversation.learned, strict=True):
        if not learned:
            mask[start:end] = 0
    return mask


def tokenize_samples(
    source: SampleSource,
    processor: BeingVLProcessor,
    output: Path,
    settings: TokenizeSettings,
    *,
    checkpoint: str,
    codes: Sequence[str] = (),
    verify_codes: bool = False,
    selection: np.ndarray | None = None,
    selected_by: dict[str, Any] | None = None,
    num_workers: int = 0,
    by_ray: bool = False,
    accept_mismatch: Collection[str] = (),
    progress: Callable[[int], Any] = lambda count: None,
) -> dict[str, Any]:
    """Tokenize a source into `output`, all of it or what is still missing; returns the manifest.

    Args:
        source: the samples.
        processor: of the checkpoint; no VQ model is needed.
        output: the folder, here or in a store (`files.place`); made if need be.
        settings: see there.
        checkpoint: where other processes load the processor from; only used with `num_workers`.
        codes: folders of code shards.
        verify_codes: compare the checksums of their shards first, which reads all of them.
        selection: ascending sample numbers to keep; all by default.
        selected_by: the filters that made the selection, for the manifest.
        num_workers: processes; 0 works in this one.
        by_ray: the processes are actors of Ray; `codes` must be visible to all nodes.
        accept_mismatch: differences between the parts that are a warning, see `identity.ACCEPTABLE`.
        progress: called with the number of samples just finished or found done.

    Raises:
        ValueError: a bad sample; a sample that `settings` refuses; an output folder made from something else.
        OSError: another process works in the folder, or a file cannot be written.
    """
    numbers = np.arange(source.num_samples) if selection is None else selection
    busy = "another process is tokenizing into it"
    with locked(output, busy), _folder_of_index(output) as aside:
        index, described = open_codes(
            codes,
            processor,
            aside / _INDEX_FILE,
            source=source,
            accept=accept_mismatch,
            verify=verify_codes,
        )
        parts = processor_identity(processor)
        if described is not None:
            parts["quantizer"] = described["quantizer"]
        run = {
            "parts": parts,
            "data": source.identity(),
            "codes": described,
            "settings": settings.identity(),
            "selected_by": selected_by or {},
        }
        claim(output, run)
        chunks = [
            numbers[i : i + settings.shard_size].tolist()
            for i in range(0, len(numbers), settings.shard_size)
        ]
        paths = [shard_path(output, i, len(chunks)) for i in range(len(chunks))]
        for path, chunk in zip(paths, chunks, strict=True):
            if path.exists():
                read_report(path)  # refuses what is not ours
                progress(len(chunk))
        todo = [i for i, path in enumerate(paths) if not path.exists()]
        finished = check_finished(output) and not todo
        read = ((i, _read(source, chunks[i])) for i in todo)
        for i, data in _map(
            read, processor, checkpoint, index, settings, num_workers, len(todo), by_ray
        ):
            write_atomic(paths[i], data)
            progress(len(chunks[i]))
        (aside / _INDEX_FILE).unlink(missing_ok=True)
        manifest = finish(output, len(chunks), run)
    return {**manifest, "finished_before": finished}


@contextmanager
def _folder_of_index(output: Path) -> Iterator[Path]:
    """Where the index of the codes lies, which processes map: beside the shards, or for those of a store on a disk."""
    if not is_remote(output):
        yield output
        return
    with TemporaryDirectory() as folder:
        yield Path(folder)


def open_codes(
    codes: Sequence[str],
    processor: BeingVLProcessor,
    index_path: Path,
    *,
    source: SampleSource | None = None,
    accept: Collection[str] = (),
    verify: bool = False,
) -> tuple[CodeIndex | None, dict[str, Any] | None]:
    """Index the codes at `index_path`, and say what they are; None of both without codes.

    Raises:
        ValueError: codes of another quantizer than the checkpoint's, or of another data set than the one that numbers
            the images of `source`.
    """
    if not codes:
        return None, None
    expected = processor.tokenizer.image_bpe.quantizer_codebook_size
    index, shards = build_index(codes, index_path, codebook_size=expected, verify=verify)
    if shards.codebook_size != expected:
        raise ValueError(
            f"{', '.join(codes)}: codebook_size must be {expected}, as in the checkpoint, got "
            f"{shards.codebook_size}"
        )
    own = None if source is None else source.positions()
    if own is not None:
        rule = "name the images by --id-column in both commands"
        for folder, encoded in positions_of(shards).items():
            found = {"positions": {name: encoded.get(name) for name in own}}
            compare(folder, found, {"positions": own}, rule=rule, accept=accept)
    described = codes_identity(shards)
    rule = "encode the images with this checkpoint's quantizer, preprocessing and --dtype"
    quantizer = {"quantizer": processor_identity(processor)["quantizer"]}
    compare(", ".join(codes), described, quantizer, rule=rule, accept=accept)
    return index, described


def _read(source: SampleSource, numbers: list[int]) -> Chunk:
    return [(n, raw, source.where(n)) for n, raw in zip(numbers, source.read(numbers), strict=True)]


# ---- processes


def _map(
    chunks: Iterator[tuple[int, Chunk]],
    processor: BeingVLProcessor,
    checkpoint: str,
    index: CodeIndex | None,
    settings: TokenizeSettings,
    num_workers: int,
    num_chunks: int,
    by_ray: bool,
) -> Iterator[tuple[int, bytes]]:
    """The shard of each chunk, as they come; few are under way at once, for the sake of memory."""
    if by_ray and num_chunks:
        make = partial(_numbered_tokenizer, processor, index, settings)
        yield from ray_map(make, chunks, workers=min(max(1, num_workers), num_chunks))
        return
    if num_workers < 2 or num_chunks < 2:
        tokenizer = ChunkTokenizer(processor, index, settings)
        for i, chunk in chunks:
            yield i, tokenizer(chunk)
        return
    saved = None if index is None else (index.files, index.path)
    # Spawned, since threads of torch and tokenizers do not survive a fork.
    context = multiprocessing.get_context("spawn")
    arguments = (checkpoint, saved, settings)
    workers = min(num_workers, num_chunks)
    with ProcessPoolExecutor(workers, context, _start_worker, arguments) as pool:
        waiting: dict[Future, int] = {}
        try:
            for i, chunk in chunks:
                with _started_without_sigint():
                    waiting[pool.submit(_work, chunk)] = i
                if len(waiting) > 2 * workers:
                    yield from _finished(waiting)
            while waiting:
                yield from _finished(waiting)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _numbered_tokenizer(
    processor: BeingVLProcessor, index: CodeIndex | None, settings: TokenizeSettings
) -> Callable[[tuple[int, Chunk]], tuple[int, bytes]]:
    tokenizer = ChunkTokenizer(processor, index, settings)
    return lambda task: (task[0], tokenizer(task[1]))


def _finished(waiting: dict[Future, int]) -> Iterator[tuple[int, bytes]]:
    done, _ = wait(waiting, return_when=FIRST_COMPLETED)
    for future in done:
        yield waiting.pop(future), future.result()


_worker: ChunkTokenizer


@contextmanager
def _started_without_sigint() -> Iterator[None]:
    """Processes that start here leave Ctrl-C, which a terminal sends to all of them, to the parent."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(
    checkpoint: str, saved: tuple[list[Path], Path] | None, settings: TokenizeSettings
) -> None:
    global _worker
    end_with_parent()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there is a process for each core already
    processor = BeingVLProcessor.from_pretrained(checkpoint, vq=False)
    index = None if saved is None else CodeIndex(*saved)
    _worker = ChunkTokenizer(processor, index, settings)


def _work(chunk: Chunk) -> bytes:
    return _worker(chunk)
