"""Words as tokens: one for each word and each punctuation mark of the stories."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .stories import vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPECIAL = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}


def tokenizer() -> PreTrainedTokenizerFast:
    """A Hugging Face tokenizer that knows the words of the stories, and no other.

    It puts <bos> before a text, as Gemma's does. Decoding gives the text back, with its spaces.

    Examples:
        >>> words, text = tokenizer(), stories(1, seed=0)[0].text
        >>> words.decode(words(text).input_ids, skip_special_tokens=True) == text
        True
    """
    import tokenizers as hf
    import transformers

    ids = {word: i for i, word in enumerate([*SPECIAL.values(), *vocabulary()])}
    words = hf.Tokenizer(hf.models.WordLevel(ids, unk_token=SPECIAL["unk_token"]))
    words.pre_tokenizer = hf.pre_tokenizers.Sequence(
        [hf.pre_tokenizers.WhitespaceSplit(), hf.pre_tokenizers.Punctuation()]
    )
    bos = SPECIAL["bos_token"]
    words.post_processor = hf.processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, ids[bos])]
    )
    words.decoder = hf.decoders.Sequence(
        [
            hf.decoders.WordPiece(prefix="##", cleanup=False),  # spaces between words
            hf.decoders.Fuse(),
            hf.decoders.Replace(hf.Regex(" (?=[.,!?”])"), ""),
            hf.decoders.Replace(hf.Regex("(?<=“) "), ""),
        ]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, clean_up_tokenization_spaces=False, **SPECIAL
    )
