"""What a model cannot take in of a prompt, told before any device is used."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any

from ti2v_dist.models import ModelFolderError, folder
from ti2v_dist.models.base import ModelInfo
from ti2v_dist.models.clips.family import parts_of
from ti2v_dist.specs import INSTRUCT

EMBEDDED_TOKENS = 16
"""The length of the embedded models' prompts, two of which mark begin and end."""
_WORD, _WORD_OR_MARK = re.compile(r"\w+"), re.compile(r"\w+|[^\w\s]")


def load_tokenizer(info: ModelInfo) -> Any:
    """The model's tokenizer: CLIP's, or what a pipeline names. Raises `ModelFolderError`."""
    import transformers

    folder, name, length = info.folder / "tokenizer", "CLIPTokenizer", {}
    if info.clip:
        name, length = parts_of(info.folder)["tokenizer"][1], {"model_max_length": info.clip.tokens}
    try:
        return getattr(transformers, name).from_pretrained(folder, local_files_only=True, **length)
    except Exception as error:  # the library under it raises bare ones
        raise ModelFolderError(f"{folder} cannot be loaded: {' '.join(str(error).split())}") from error


def lost_words(info: ModelInfo, prompts: Iterable[str]) -> Iterator[str]:
    """A sentence for each distinct prompt of which a part is lost: cut off at the model's length, or never learned."""
    return LostWords(info).of(prompts)


class LostWords:
    """The same of prompts some after others: the tokenizer is loaded once, for the first of them."""

    def __init__(self, info: ModelInfo) -> None:
        self._info = info

    def of(self, prompts: Iterable[str]) -> Iterator[str]:
        for prompt in dict.fromkeys(prompts):
            if self._info.clip and not self._info.clip.reads_text:
                if prompt:
                    yield f"prompt {prompt!r} is not read: {self._info.model_id} goes by the image alone"
                continue
            known = self._known
            unknown = [word for word in dict.fromkeys(_WORD.findall(prompt.lower())) if known and word not in known]
            is_short = known and not unknown and self._fits_grammar(prompt)
            if not is_short and (dropped := _dropped(self._tokenizer, prompt)):
                limit = self._tokenizer.model_max_length
                yield f"prompt {prompt!r} is longer than the model's {limit} tokens; dropped: {dropped!r}"
            if unknown:
                words = ", ".join(sorted(known - {","}))
                yield f"prompt {prompt!r}: the shapes model never saw {', '.join(unknown)}; its words are {words}"

    def _fits_grammar(self, prompt: str) -> bool:
        """Whether known words are few enough, each of which is one token: to import a tokenizer takes half a second."""
        return (
            INSTRUCT not in self._info.capabilities  # which has words of several
            and prompt.isascii()
            and "'" not in prompt  # which a tokenizer takes for the beginning of an ending
            and len(_WORD_OR_MARK.findall(prompt)) <= EMBEDDED_TOKENS - 2
        )

    @cached_property
    def _tokenizer(self) -> Any:
        return load_tokenizer(self._info)

    @cached_property
    def _known(self) -> set[str]:
        return _vocabulary(self._info)


def _dropped(tokenizer: Any, prompt: str) -> str:
    length = tokenizer.model_max_length
    if prompt.isascii() and len(prompt) <= length - 2:  # a token has at least one byte; two mark begin and end
        return ""
    spans = tokenizer(prompt, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    if len(spans) <= length:
        return ""
    # The last of the tokens that fit marks the end; a word that is cut in two counts as dropped.
    first_lost = spans[length - 1][0]
    return prompt[prompt.rfind(" ", 0, first_lost + 1) + 1 :]


def _vocabulary(info: ModelInfo) -> set[str]:
    """The words of a model that knows few; empty where any word may mean something."""
    if info.folder not in folder.EMBEDDED.values():
        return set()
    from ti2v_dist.shapes.world import grammar, instruction_words

    return set(instruction_words() if INSTRUCT in info.capabilities else grammar())
