"""text and codes → ids: a Llama-family tokenizer with the image ids after its text vocabulary.

Source: the authors' checkpoints append one added token for each visual id to the Llama 3.1 tokenizer.
It differs from theirs in that the ids follow from the sizes stored with the tokenizer (`vocabulary.py`),
never from the text of a token, and in that `image_bpe.json` lies beside `tokenizer.json`.

The class defines no `__init__`: transformers rebuilds a fast tokenizer that does from its bare vocabulary
and merges, which loses its normalizer and pre-tokenizer.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ..bpe.grids import check_codes
from ..bpe.image_bpe import ImageBPE
from ..bpe.vocabulary_file import FILE_NAME as IMAGE_BPE_FILE
from ..files import reading, shown
from ..hub.part import CheckpointPart, Origin, commit_of
from ..vocabulary import VocabularyLayout
from .control_tokens import render_chat

DEFAULT_SPECIAL_TOKENS: dict[str, str] = {
    "boi_token": "<|boi|>",
    "eoi_token": "<|eoi|>",
    "image_token": "<image>",
}
"""The tokens that every being_vl tokenizer has; a `<pad>` precedes them where the base has none."""

VIDEO_SPECIAL_TOKENS: dict[str, str] = {
    "bov_token": "<|bov|>",
    "eov_token": "<|eov|>",
    "video_token": "<video>",
}
"""Further tokens of vocabularies that know videos, by default of those whose image BPE has a repeat code."""

LLAMA_31_SPECIAL_TOKENS: dict[str, str] = {
    "pad_token": "<pad>",
    "sep_token": "<reserved08706>",
    "eoi_token": "<eoss>",
    "image_token": "<image>",
    "boi_token": "<racm3:break>",
}
"""The five tokens of the authors' Being-VL checkpoints, in the order of their ids 128256 … 128260."""

# What the user set on the text tokenizer and that is not part of the backend.
_CARRIED_SETTINGS = (
    "model_max_length",
    "padding_side",
    "truncation_side",
    "model_input_names",
    "clean_up_tokenization_spaces",
    "chat_template",
)


@cache  # a string for each id that occurs; a batch asks for tens of thousands
def visual_token(visual_id: int) -> str:
    """The text of the token of a visual id. Nothing parses it back."""
    return f"<|visual_{visual_id}|>"


class BeingVLTokenizer(CheckpointPart, PreTrainedTokenizerFast):
    """A fast text tokenizer with special tokens for images and one token for each visual id.

    Ids: `[0, T)` the text tokenizer's own, `[T, T+S)` special tokens, then codes, then merges; see `layout`.
    `len(tokenizer)` is the number of rows that the model's embeddings need. Image tokens are special added
    tokens: `skip_special_tokens=True` drops them in `decode`. Text that spells one becomes its id, as with
    every added token; `split_special_tokens=True`, or `apply_chat_template(sanitize_control_tokens=True)`,
    turns that off for text that is not trusted.

    Build one with [`from_text_tokenizer`]; load one with `AutoTokenizer.from_pretrained`. The files load as
    a plain `PreTrainedTokenizerFast` where this package is not installed, with the same ids.
    """

    vocab_files_names = {"tokenizer_file": "tokenizer.json", "image_bpe_file": IMAGE_BPE_FILE}  # noqa: RUF012
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012

    _image_bpe: ImageBPE | None = None
    _source: Origin | None = None  # where from, for push_to_hub

    @classmethod
    def from_text_tokenizer(
        cls,
        text_tokenizer: PreTrainedTokenizerBase,
        image_bpe: ImageBPE,
        special_tokens: Mapping[str, str] | None = None,
        *,
        num_rows: int | None = None,
    ) -> BeingVLTokenizer:
        """Append the special tokens and the image tokens to a text tokenizer, whose ids stay as they are.

        Args:
            text_tokenizer: any fast tokenizer (Llama 3, Llama 2, TinyLlama, SmolLM …).
            image_bpe: saved with the tokenizer.
            special_tokens: names (`boi_token`, `eoi_token`, `image_token`, and any other that ends in `_token`) to
                texts, in the order of their ids; `bov_token`, `eov_token` and `video_token` make a vocabulary of
                videos. By default `DEFAULT_SPECIAL_TOKENS`, after a `<pad>` where the text tokenizer has no padding
                token, and `VIDEO_SPECIAL_TOKENS` after them where `image_bpe` has a repeat code. A text that the
                vocabulary has keeps its id. `LLAMA_31_SPECIAL_TOKENS` gives the authors' layout.
            num_rows: of the text model's matrices. Added tokens from there on (Gemma 3's `<image_soft_token>`) have
                no row in it: they keep their ids, and count as special tokens, not as text.

        Raises:
            ValueError: the tokenizer is not a fast one, its ids have gaps, a name is missing, two special
                tokens share a text, the vocabulary already has an image token, or an id without a row is no
                added token's.
        """
        if not isinstance(text_tokenizer, PreTrainedTokenizerFast):
            raise ValueError(
                "text_tokenizer must be a fast tokenizer (PreTrainedTokenizerFast), "
                f"got {type(text_tokenizer).__name__}"
            )
        _check_no_gaps(text_tokenizer.backend_tokenizer, "text_tokenizer")
        vocabulary = text_tokenizer.backend_tokenizer.get_vocab(with_added_tokens=True)
        text_size = len(vocabulary)
        if num_rows is not None and num_rows < text_size:
            added = text_tokenizer.added_tokens_decoder
            if not all(token_id in added for token_id in range(num_rows, text_size)):
                raise ValueError(
                    f"{text_tokenizer.name_or_path or 'text_tokenizer'}: its tokenizer has {text_size} ids, but the "
                    f"matrices of the text model have {num_rows} rows"
                )
            text_size = num_rows
        has_videos = image_bpe.repeat_code is not None
        named = _resolve_special_tokens(text_tokenizer, special_tokens, has_videos)
        backend = Tokenizer.from_str(text_tokenizer.backend_tokenizer.to_str())
        backend.no_padding()
        backend.no_truncation()
        image_tokens = [visual_token(visual_id) for visual_id in range(image_bpe.vocab_size)]
        clash = next((token for token in image_tokens if token in vocabulary), None)
        if clash is not None:
            raise ValueError(f"text_tokenizer already has the image token {clash!r}")
        appended = [token for token in named.values() if token not in vocabulary] + image_tokens
        special = (AddedToken(token, special=True, normalized=False) for token in appended)
        backend.add_special_tokens(list(special))
        settings = {
            name: getattr(text_tokenizer, name)
            for name in _CARRIED_SETTINGS
            if getattr(text_tokenizer, name, None) is not None
        }
        tokenizer = cls(
            tokenizer_object=backend,
            text_vocab_size=text_size,
            extra_special_tokens=text_tokenizer.extra_special_tokens,
            **{**text_tokenizer.special_tokens_map, **named},
            **settings,
        )
        tokenizer._image_bpe = image_bpe
        tokenizer._check_image_tokens()
        return tokenizer

    @property
    def image_bpe(self) -> ImageBPE:
        """The image BPE saved with this tokenizer.

        Raises:
            ValueError: the tokenizer was loaded or built without an `image_bpe.json`.
        """
        if self._image_bpe is None:
            path = self.init_kwargs.get("image_bpe_file")
            if path is None:
                raise ValueError(
                    f"{IMAGE_BPE_FILE} is missing beside the tokenizer "
                    f"{self.name_or_path or '(built in memory)'}; "
                    "BeingVLTokenizer.from_text_tokenizer builds a tokenizer from a text tokenizer and an ImageBPE"
                )
            self._image_bpe = ImageBPE.from_pretrained(os.path.dirname(path))
            self._image_bpe._source = self._source
        return self._image_bpe

    @property
    def layout(self) -> VocabularyLayout:
        """The blocks of ids: text, special tokens, codes, merges."""
        text_size = self.init_kwargs["text_vocab_size"]
        return VocabularyLayout(
            text_size=text_size,
            num_special_tokens=self._tokenizer.token_to_id(visual_token(0)) - text_size,
            codebook_size=self.image_bpe.codebook_size,
            num_merges=self.image_bpe.num_merges,
        )

    def apply_chat_template(self, conversation: Any, *args: Any, **kwargs: Any) -> Any:
        """As of every tokenizer, but that a part which the template would drop is an error; see `render_chat`."""
        apply = super().apply_chat_template
        return render_chat(self, self.get_chat_template, apply, conversation, *args, **kwargs)

    def encode_codes(
        self, grids: Iterable[np.ndarray], *, dropout: float = 0.0, seed: int | None = None
    ) -> list[np.ndarray]:
        """Grids of codes (h, w), of any sizes → their token ids, int32 (n,), without the begin and end tokens.

        `dropout` and `seed` are as of `ImageBPE.encode`.

        Raises:
            ValueError: a code that no quantizer gives, the repeat code of videos among them; grid and cell are named.
        """
        grids, bpe = list(grids), self.image_bpe
        if bpe.repeat_code is not None:
            for number, grid in enumerate(grids):
                check_codes(np.asarray(grid), bpe.repeat_code, f"image_codes[{number}]")
        first_code_id = self.layout.first_code_id
        encoded = bpe.encode_batch(grids, dropout=dropout, seed=seed)
        return [ids + np.int32(first_code_id) for ids in encoded]

    def open_videos(self, ids: np.ndarray) -> np.ndarray:
        """How many videos are open at each of the ids (n,): the begin token is inside, the end token is not."""
        begin, end = (getattr(self, f"{name}_token_id", None) for name in ("bov", "eov"))
        if begin is None:
            return np.zeros(len(ids), np.int64)
        return np.cumsum(ids == begin) - np.cumsum(ids == end)

    def check_rows(self, vocab_size: int) -> None:
        """Raises ValueError for a token that has no row in a model of `vocab_size` ids.

        A text in tokenizer_config.json that tokenizer.json does not have is appended by transformers; and what
        tokenizer.json puts around each text has ids of its own there, which nobody compares with the vocabulary.
        """
        for name, token in self.special_tokens_map.items():
            row = self._tokenizer.token_to_id(token) if isinstance(token, str) else None
            if row is not None and row >= vocab_size:
                raise ValueError(
                    f"tokenizer_config.json of {self.name_or_path}: {name} is {token!r} with the id {row}, but the model "
                    f"has {vocab_size} rows"
                )
        row = len(self) - 1
        token = self._tokenizer.id_to_token(row)
        with reading(os.path.join(self.name_or_path, "tokenizer.json"), "no text can be tokenized"):
            around = max(self._tokenizer.encode("").ids, default=0)
        if around > row:
            token, row = "what stands around each text", around
        if row >= vocab_size:
            raise ValueError(
                f"tokenizer.json of {self.name_or_path}: {shown(token)} has the id {row}, but the model has "
                f"{vocab_size} rows"
            )

    def _check_image_tokens(self) -> None:
        """Fails on files that do not belong together: another image_bpe.json, or a cut tokenizer.json."""
        if "text_vocab_size" not in self.init_kwargs:
            raise ValueError(
                f"tokenizer_config.json of {self.name_or_path or 'the tokenizer'}: text_vocab_size is missing"
            )
        if getattr(self, "backend", None) not in (None, "tokenizers"):
            raise ValueError(
                f"tokenizer_config.json of {self.name_or_path or 'the tokenizer'}: backend must be 'tokenizers', got "
                f"{self.backend!r}"
            )
        last = self.image_bpe.vocab_size - 1
        ends = [self._tokenizer.token_to_id(visual_token(visual_id)) for visual_id in (0, last)]
        if (
            None in ends
            or ends[1] - ends[0] != last
            or self._tokenizer.token_to_id(visual_token(last + 1))
        ):
            raise ValueError(
                f"{IMAGE_BPE_FILE} has {last + 1} visual ids, but the vocabulary of the tokenizer "
                f"{self.name_or_path or ''} does not have one token for each".replace("  ", " ")
            )

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike, *args: Any, **kwargs: Any
    ) -> BeingVLTokenizer:
        """As every tokenizer; remembers where from, for `push_to_hub`."""
        tokenizer = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        commit = commit_of(tokenizer.init_kwargs.get("image_bpe_file"))
        tokenizer._source = Origin.of(
            pretrained_model_name_or_path, commit, kwargs.get("subfolder")
        )
        _check_no_gaps(tokenizer._tokenizer, f"tokenizer.json of {tokenizer.name_or_path}")
        tokenizer._check_image_tokens()
        return tokenizer

    def _checkpoint_source(self) -> Origin | None:
        return self._source

    def _save_pretrained(
        self,
        save_directory: str | os.PathLike,
        file_names: tuple[str, ...],
        legacy_format: bool | None = None,
        filename_prefix: str | None = None,
    ) -> tuple[str, ...]:
        names = super()._save_pretrained(save_directory, file_names, legacy_format, filename_prefix)
        self.image_bpe.save_pretrained(save_directory)
        return (*names, os.path.join(str(save_directory), IMAGE_BPE_FILE))

    def __repr__(self) -> str:
        layout = self.layout
        return (
            f"{type(self).__name__}(name_or_path={self.name_or_path!r}, text_size={layout.text_size}, "
            f"num_special_tokens={layout.num_special_tokens}, codebook_size={layout.codebook_size}, "
            f"num_merges={layout.num_merges}, model_max_length={self.model_max_length}, "
            f"padding_side={self.padding_side!r}, special_tokens={self.special_tokens_map})"
        )


def _check_no_gaps(backend: Tokenizer, name: str) -> None:
    """Raises ValueError for ids that are not 0, 1, 2, …: wherever tokenizers says itself as JSON, it writes out each gap.

    Ids are distinct, so one beyond their number means that one below it is missing, and asking for each takes half of
    the time of `get_vocab`.
    """
    size = backend.get_vocab_size(with_added_tokens=True)
    if None in map(backend.id_to_token, range(size)):
        largest = max(backend.get_vocab(with_added_tokens=True).values())
        raise ValueError(
            f"{name} has {size} tokens but its largest id is {largest}: ids with gaps leave no place to append image tokens"
        )


def _resolve_special_tokens(
    text_tokenizer: PreTrainedTokenizerBase,
    special_tokens: Mapping[str, str] | None,
    has_videos: bool,
) -> dict[str, str]:
    """The named special tokens in the order of their ids, checked."""
    if special_tokens is None:
        named = dict(DEFAULT_SPECIAL_TOKENS)
        if text_tokenizer.special_tokens_map.get("pad_token") is None:
            named = {"pad_token": "<pad>", **named}
        if has_videos:
            named |= VIDEO_SPECIAL_TOKENS
    else:
        named = dict(special_tokens)
    wanted = [*DEFAULT_SPECIAL_TOKENS]
    if has_videos or named.keys() & VIDEO_SPECIAL_TOKENS:
        wanted += VIDEO_SPECIAL_TOKENS
    for name in wanted:
        if name not in named:
            raise ValueError(f"special_tokens lacks {name!r}, got {sorted(named)}")
    for name, token in named.items():
        if not name.endswith("_token") or not isinstance(token, str) or not token:
            raise ValueError(
                f"special_tokens maps names that end in '_token' to texts, got {name!r}: {token!r}"
            )
    if len(set(named.values())) != len(named):
        raise ValueError(f"special_tokens must differ from each other, got {named}")
    return named
