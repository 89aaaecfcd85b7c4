"""The text tower of a CLIP or SigLIP, which runs once: the embedding of every class of a zero-shot
classifier.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sskt.download import digest_of_data
from sskt.errors import SourceError
from sskt.extras import library
from sskt.sources.prompts import prompt_texts

if TYPE_CHECKING:
    from sskt.sources.hf_files import HfConfig

_BATCH = 64  # texts
_UNREADABLE = (OSError, ValueError, LookupError, TypeError, AttributeError, ImportError, RuntimeError)


def text_features(
    pair: Any, config: HfConfig, prompts: Sequence[str], classes: Sequence[str], name: str
) -> tuple[Tensor, str]:
    """The embedding of each class, float32 (K, D) of length 1: the mean of those of its prompts; and the
    sha256 of the tokens, which no version of a tokenizer may change.

    Raises SourceError for a folder without a tokenizer.
    """
    transformers = library("transformers", extra="hf", needed_by=name)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(config.folder, local_files_only=True)
    except _UNREADABLE as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise SourceError(
            f"{name}: its tokenizer cannot be read ({reason}), and a zero-shot classifier reads its classes' "
            f"names; fetch the tokenizer's files too, or ask for @embedding"
        ) from error
    # SigLIP was trained on texts that are padded to their full length
    padding = "max_length" if config.architecture.startswith("Siglip") else True
    length = pair.config.text_config.max_position_embeddings
    total, tokens_seen = torch.zeros(()), []
    with torch.inference_mode():
        for texts in prompt_texts(prompts, classes):
            rows = []
            for start in range(0, len(texts), _BATCH):
                batch = texts[start : start + _BATCH]
                tokens = tokenizer(
                    batch, padding=padding, truncation=True, max_length=length, return_tensors="pt"
                )
                mask = None if padding == "max_length" else tokens.get("attention_mask")
                found = pair.get_text_features(input_ids=tokens["input_ids"], attention_mask=mask)
                rows.append(torch.nn.functional.normalize(found.pooler_output.float(), dim=1))
            tokens_seen.append(
                [tokenizer(text, truncation=True, max_length=length)["input_ids"] for text in texts]
            )
            total = total + torch.cat(rows)
    return torch.nn.functional.normalize(total, dim=1).clone(), digest_of_data(tokens_seen)
