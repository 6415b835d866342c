"""tokens → ids: the layout of a language model's vocabulary once images have joined it.

Source: the layout of the authors' released Being-VL checkpoints (Llama 3.1: five special tokens from
128256, codes from 128261, merges from 136453, 144645 ids in all). This is the only module that does
this arithmetic. It differs from the authors' in that every size is a field, not a constant.

    [0, T)            the text vocabulary, untouched
    [T, T+S)          special tokens
    [T+S, T+S+K)      codes
    [T+S+K, T+S+K+M)  merges, in rank order
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class VocabularyLayout:
    """Sizes of the four blocks of ids, and the maps between visual ids and token ids.

    Args:
        text_size: T, the size of the base tokenizer, its own special tokens included.
        num_special_tokens: S, the special tokens added for images.
        codebook_size: K.
        num_merges: M.

    Raises:
        ValueError: a size is negative.
    """

    text_size: int
    num_special_tokens: int
    codebook_size: int
    num_merges: int

    def __post_init__(self) -> None:
        for name in ("text_size", "num_special_tokens", "codebook_size", "num_merges"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")

    @property
    def first_code_id(self) -> int:
        """T + S, the token id of code 0."""
        return self.text_size + self.num_special_tokens

    @property
    def first_merge_id(self) -> int:
        """T + S + K, the token id of the merge of rank 0."""
        return self.first_code_id + self.codebook_size

    @property
    def num_image_tokens(self) -> int:
        """K + M, the number of visual ids."""
        return self.codebook_size + self.num_merges

    @property
    def size(self) -> int:
        """The number of rows of the model's embeddings."""
        return self.first_merge_id + self.num_merges

    def cut_to(self, size: int) -> VocabularyLayout:
        """The layout without the ids from `size` on: merges go first, then codes, special tokens, text."""
        text_size = min(self.text_size, size)
        num_special_tokens = min(self.num_special_tokens, size - text_size)
        first_code_id = text_size + num_special_tokens
        codebook_size = min(self.codebook_size, size - first_code_id)
        num_merges = min(self.num_merges, size - first_code_id - codebook_size)
        return VocabularyLayout(text_size, num_special_tokens, codebook_size, num_merges)

    def token_id(self, visual_id: int) -> int:
        """The language model's id of a visual id in [0, K + M); any other raises ValueError."""
        if not 0 <= visual_id < self.num_image_tokens:
            raise ValueError(f"visual id {visual_id} is not in [0, {self.num_image_tokens})")
        return self.first_code_id + visual_id

    def visual_id(self, token_id: int) -> int:
        """The visual id of a token id in [T + S, T + S + K + M); any other raises ValueError."""
        if not self.first_code_id <= token_id < self.size:
            raise ValueError(
                f"token id {token_id} is not an image token, those are in [{self.first_code_id}, {self.size})"
            )
        return token_id - self.first_code_id

    def kind(self, token_id: int) -> str:
        """``"text"``, ``"special"``, ``"code"`` or ``"merge"``; an id outside the vocabulary raises ValueError."""
        if not 0 <= token_id < self.size:
            raise ValueError(f"token id {token_id} is not in [0, {self.size})")
        if token_id < self.text_size:
            return "text"
        if token_id < self.first_code_id:
            return "special"
        return "code" if token_id < self.first_merge_id else "merge"
