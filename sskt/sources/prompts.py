"""The texts by which a zero-shot classifier knows its classes (CLIP, section 3.1.4)."""

from __future__ import annotations

from collections.abc import Sequence

from sskt.download import digest_of_data

DEFAULT_PROMPTS = ("a photo of a {}.",)  # CLIP's


def prompt_texts(prompts: Sequence[str], classes: Sequence[str]) -> list[list[str]]:
    """Of each prompt, the text of each class; underscores in names are spaces."""
    return [[prompt.replace("{}", name.replace("_", " ")) for name in classes] for prompt in prompts]


def prompts_sha256(prompts: Sequence[str] | None, classes: Sequence[str]) -> str:
    """The digest of the texts, in their order: what rows depend on of the classes' names."""
    return digest_of_data(prompt_texts(prompts or DEFAULT_PROMPTS, classes))
