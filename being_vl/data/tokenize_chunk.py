"""A chunk of samples and the codes of their images → the bytes of one shard of ids.

A chunk is the unit of work: any process makes the same bytes of it. `ChunkTokenizer` reads the samples, looks up
their codes, applies the chat template to batches of them, checks the result and puts the tokens of the images in.
Samples that the settings leave out are written down by `ChunkReport`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np
from jinja2 import TemplateError

from ..processing.chat_messages import template_source
from ..processing.control_tokens import ControlTokens
from ..processing.processing_being_vl import BeingVLProcessor
from ..processing.template_limits import BrokenTemplateError
from ..quantizers.video_loading import FrameMetadata
from .chunk_report import ChunkReport, LeftOut, Refused
from .codes import CodeIndex, normal_id
from .conversations import Conversation, parse_sample
from .sources import decode_sample
from .tokenize_settings import TokenizeSettings
from .tokenized import shard_bytes

Chunk = list[tuple[int, Any, str]]  # number of a sample, what its source gives, its name in errors
# Codes by kind and id: of an image (h, w); of a video (T, h, w) and the time of each frame.
Grids = dict[tuple[str, str], Any]
Encoded = tuple[np.ndarray, np.ndarray]  # ids int32 and assistant mask int8 of a sample
_BATCH = 64  # samples through the processor at once
_STAND_IN = np.zeros((1, 1), np.int32)
_GENERATION = re.compile(r"{%-?\s*generation\b")


class ChunkTokenizer:
    """Makes the shard of a chunk of samples, and the `report` of it; the same bytes in every process."""

    report: ChunkReport

    def __init__(
        self, processor: BeingVLProcessor, index: CodeIndex | None, settings: TokenizeSettings
    ):
        if not _GENERATION.search(template_source(processor.chat_template)):
            raise ValueError(
                "the chat template has no {% generation %} around what the assistant says, so that nothing "
                "would be learned; being-vl init gives a checkpoint one that has"
            )
        self._processor = processor
        self._index = index
        self._settings = settings
        self._control = ControlTokens(processor.tokenizer, self._ids_of)
        self._layout = processor.tokenizer.layout

    def _ids_of(self, messages: list[dict[str, Any]]) -> list[int]:
        encoded: Any = self._processor.apply_chat_template(
            [messages], tokenize=True, return_dict=True
        )
        return encoded["input_ids"][0]

    def __call__(self, chunk: Chunk) -> bytes:
        report = self.report = ChunkReport(self._settings)
        fix = self._settings.on_bad_row == "fix"
        samples: list[tuple[Conversation, str]] = []
        for number, raw, where in chunk:
            with report.attempt(where, None):
                sample = decode_sample(raw, where)
                samples.append((parse_sample(sample, where=where, number=number, fix=fix), where))
        grids = self._grids([conversation for conversation, _ in samples])
        image_tokens = self._image_tokens(grids)
        kept = []
        for conversation, where in samples:
            with report.attempt(where, conversation.id):
                kept.append((self._with_codes(conversation, where, grids), where))
        columns: dict[str, Any] = defaultdict(list)
        for start in range(0, len(kept), _BATCH):
            batch = kept[start : start + _BATCH]
            encoded = self._encode([conversation for conversation, _ in batch], grids)
            for (conversation, where), one in zip(batch, encoded, strict=True):
                checked = None
                with report.attempt(where, conversation.id):
                    checked = self._check(conversation, where, one, image_tokens, grids)
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
        return shard_bytes(columns, {**report.counts, "skipped": report.skipped})

    # Codes

    def _grids(self, conversations: Sequence[Conversation]) -> Grids:
        """Codes by the ids that the samples use; a name that is not known is looked up in its normal form."""
        grids: Grids = {}
        if self._index is None:
            return grids
        root = self._settings.image_root
        for medium, lookup in (("image", self._index.lookup), ("video", self._index.lookup_videos)):
            keys = {key for conversation in conversations for key in _keys(conversation)}
            names = {name for kind, name in keys if kind == medium}
            found: dict[str, Any] = lookup(names)
            normal = {name: normal_id(name, root) for name in sorted(names - found.keys())}
            others = lookup(normal.values())
            found |= {name: others[other] for name, other in normal.items() if other in others}
            grids |= {(medium, name): codes for name, codes in found.items()}
        return grids

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

    def _with_codes(self, conversation: Conversation, where: str, grids: Grids) -> Conversation:
        """The sample, if its images and videos are there, after what the settings do with the others."""
        missing = [key for key in dict.fromkeys(_keys(conversation)) if key not in grids]
        if not missing:
            return conversation
        medium, name = missing[0]
        why = "no --codes given" if self._index is None else f"no codes for this {medium}"
        if self._settings.on_missing == "raise":
            near = None
            if self._index is not None and self._settings.on_bad_row == "raise":
                near = self._index.nearest(name)
            hint = f" (the nearest known id is {near!r}; --image-root, --id-column)" if near else ""
            raise Refused(
                f"{where}: {medium} {name!r}: {why}{hint}; --on-missing skip leaves such samples out, "
                f"--on-missing text keeps them without the {medium}"
            )
        if self._settings.on_missing == "skip":
            raise LeftOut(why, name)
        rest = conversation.without(missing)
        if any(m["role"] == "assistant" and not m["content"] for m in rest.messages):
            raise LeftOut(f"{why}, and it is all that the assistant says", name)
        for _, name in missing:
            self.report.write_down(where, conversation.id, name, why)
        return rest

    # Ids

    def _encode(self, batch: list[Conversation], grids: Grids) -> list[Encoded | ValueError]:
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

    def _check(
        self,
        conversation: Conversation,
        where: str,
        encoded: Encoded | ValueError,
        image_tokens: dict[str, np.ndarray | ValueError],
        grids: Grids,
    ) -> Encoded:
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
        ids, mask = self._with_images(ids, mask, images, has_videos=bool(conversation.video_ids))
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
        self, ids: np.ndarray, mask: np.ndarray, images: Sequence[np.ndarray], *, has_videos: bool
    ) -> Encoded:
        """Ids and mask of a sample with the tokens of its images, each in place of the one that stands for it."""
        tokenizer = self._processor.tokenizer
        begins = ids == tokenizer.boi_token_id
        if has_videos:  # whose frames have theirs
            begins &= tokenizer.open_videos(ids) <= 0
        places = np.flatnonzero(begins) + 1
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
            raise Refused(f"{where}: {reason}; --{option} skip leaves such samples out")
        raise LeftOut(reason)

    def _count(
        self,
        conversation: Conversation,
        where: str,
        ids: np.ndarray,
        mask: np.ndarray,
        grids: Grids,
    ) -> None:
        layout = self._layout
        counts = self.report.counts
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
            self.report.write_down(where, conversation.id, None, f"kept: {conversation.fixed}")


def _keys(conversation: Conversation) -> list[tuple[str, str]]:
    """Its images and videos, by kind and id."""
    named = {"image": conversation.image_ids, "video": conversation.video_ids}
    return [(medium, name) for medium, names in named.items() for name in names]


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
