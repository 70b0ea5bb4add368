"""A real CLIPTokenizer, its byte-pair encoding learnt on the captions that these tests speak of."""

from __future__ import annotations

import json

import pytest

from vca.refine.refiner import CountTokens, token_counter

WORDS = """woman man person firefighter pilot office worker motorized wheelchair facing right light medium dark skin red
white curly blond hair bald beard noto twemoji fluent style a red car on a green hill with an old dog in watercolor"""


@pytest.fixture(scope="session")
def count_tokens() -> CountTokens:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=None))
    learner.normalizer = normalizers.Lowercase()
    learner.pre_tokenizer = pre_tokenizers.Whitespace()
    learner.train_from_iterator(
        [WORDS],
        trainers.BpeTrainer(
            vocab_size=1000, end_of_word_suffix="</w>", initial_alphabet=alphabet, show_progress=False, min_frequency=1
        ),
    )
    learnt = json.loads(learner.to_str())["model"]
    vocab = dict(learnt["vocab"])
    for token in [*(f"{byte}</w>" for byte in alphabet), "<|startoftext|>", "<|endoftext|>"]:
        vocab.setdefault(token, len(vocab))
    merges = [tuple(pair) for pair in learnt["merges"]]
    return token_counter(CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=77))
