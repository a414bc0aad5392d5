"""From documents to what the model reads: its tokenizer, and rows of whole documents."""

from __future__ import annotations

import random
from collections.abc import Sequence

from cai.prompts import markers, training_format


def train_tokenizer(documents: Sequence[str], vocabulary: int):
    """A byte-level BPE that splits text as transformers' Qwen2 tokenizer does: that one loads it later."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[markers.END_OF_TEXT],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator((d.removesuffix(markers.END_OF_TEXT) for d in documents), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=markers.END_OF_TEXT,
        pad_token=markers.END_OF_TEXT,
        padding_side="left",
        model_max_length=1024,
    )
    fast.chat_template = training_format.TRAINING_CHAT_TEMPLATE
    return fast


def pack(documents: Sequence[Sequence[int]], length: int, rng: random.Random):
    """Whole documents into rows, best fit, in random order: int32 [rows, length], -1 is padding."""
    import numpy as np

    rows: list[list[Sequence[int]]] = []
    free: dict[int, list[int]] = {}  # tokens left -> rows
    for document in sorted(documents, key=len, reverse=True):
        assert len(document) <= length, f"a document has {len(document)} tokens, a row {length}"
        room = next((left for left in range(len(document), length) if free.get(left)), None)
        if room is None:
            rows.append([])
        row, left = (len(rows) - 1, length) if room is None else (free[room].pop(), room)
        rows[row].append(document)
        free.setdefault(left - len(document), []).append(row)
    rng.shuffle(rows)
    packed = np.full((len(rows), length), -1, dtype=np.int32)
    for i, row in enumerate(rows):
        rng.shuffle(row)  # else every row would begin with its longest document
        tokens = [token for document in row for token in document]
        packed[i, : len(tokens)] = tokens
    return packed


def make_rows(tokenizer, documents, n: int, length: int, rng: random.Random, chunk: int = 4096):
    """[n, length] packed rows from an endless iterator of documents."""
    import numpy as np

    parts, have = [], 0
    while have < n:
        texts = [next(documents) for _ in range(chunk)]
        ids = [e.ids for e in tokenizer.backend_tokenizer.encode_batch(texts)]
        # By some seeds one fact check in many thousands is a few tokens longer than a row: it is left out.
        parts.append(pack([document for document in ids if len(document) <= length], length, rng))
        have += len(parts[-1])
    return np.concatenate(parts)[:n]
