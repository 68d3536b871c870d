"""The tokenizer, against the annotated stories."""

from itertools import pairwise

import pytest
import transformers

from entk_helpers.testbeds import grammar

DOCUMENTS = grammar.stories(100, seed=12)
TOKENIZER = grammar.tokenizer()


def test_tokens_are_the_words_and_lie_where_they_lie():
    for document in DOCUMENTS:
        one = TOKENIZER(document.text, return_offsets_mapping=True)
        assert TOKENIZER.convert_ids_to_tokens(one.input_ids) == [
            "<bos>",
            *(word.text for word in document.words),
        ]
        assert one.offset_mapping[1:] == [(word.start, word.end) for word in document.words]


def test_decoding_gives_the_text_back():
    for document in DOCUMENTS:
        ids = TOKENIZER(document.text).input_ids
        assert TOKENIZER.decode(ids, skip_special_tokens=True) == document.text
        assert TOKENIZER.decode(ids[1:]) == document.text


def test_a_longer_window_decodes_to_a_longer_text():
    ids = TOKENIZER(DOCUMENTS[0].text, add_special_tokens=False).input_ids
    texts = [TOKENIZER.decode(ids[:n]) for n in range(len(ids) + 1)]
    assert texts[0] == "" and texts[-1] == DOCUMENTS[0].text
    assert all(later.startswith(text) for text, later in pairwise(texts))


@pytest.mark.parametrize("text", ["She ran.", "“I do not run!” said Tim.", "Lily, run!", "“What?”"])
def test_decoded_text_is_readable(text):
    assert TOKENIZER.decode(TOKENIZER(text).input_ids[1:]) == text


def test_special_tokens_are_the_first_and_known_by_their_names():
    names = ["<pad>", "<bos>", "<eos>", "<unk>"]
    ids = [TOKENIZER.pad_token_id, TOKENIZER.bos_token_id, TOKENIZER.eos_token_id]
    assert [*ids, TOKENIZER.unk_token_id] == [0, 1, 2, 3]
    assert TOKENIZER.convert_ids_to_tokens([0, 1, 2, 3]) == names
    assert len(TOKENIZER) == 4 + len(grammar.vocabulary())
    assert TOKENIZER("She philosophised.").input_ids[1:] == [
        TOKENIZER.convert_tokens_to_ids("She"), 3, TOKENIZER.convert_tokens_to_ids("."),
    ]  # fmt: skip


def test_it_comes_back_from_a_folder(tmp_path):
    TOKENIZER.save_pretrained(tmp_path)
    back = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for document in DOCUMENTS[:10]:
        ids = TOKENIZER(document.text).input_ids
        assert back(document.text).input_ids == ids
        assert back.decode(ids, skip_special_tokens=True) == document.text


def test_batches_are_padded_on_the_right_and_masked():
    batch = TOKENIZER(["She ran.", "Lily"], padding=True)
    assert batch.attention_mask == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch.input_ids[1][2:] == [0, 0]
