"""Summaries: tokens, labels, loss and what is written are those of the slow obvious way, for all kinds of models."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from summaries import KINDS, settings_of
from torch.nn import functional as F

from fedasym.adapters import trainable_state
from fedasym.data.examples import load_examples
from fedasym.models.build import build
from fedasym.tasks import task_of
from fedasym.tasks.metrics import rouge
from fedasym.tasks.next_tokens import IGNORED
from fedasym.tasks.summarize import write
from fedasym.training.loop import draw_batches, evaluate, train_steps

PLACES = [0, 1, 5, 8]
SIZES = {"bart": 0.3, "t5": 2.0, "llama": 0.3}  # of the drawn B, with which a tiny model writes one thing and another


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("summaries")


@pytest.fixture
def bench(models, root):
    """Return a function that makes all that a training needs, its B filled with numbers that show."""

    def make(kind: str, size: float = 0.0, **more):
        settings = settings_of(kind, models, root, **more)
        task = task_of(settings)
        examples, held = load_examples(settings)
        built = build(settings, task.outputs(()), task.inputs)
        moved = trainable_state.trainable(built.model)
        rng = np.random.default_rng(2)
        if settings.method == "asymmetric":
            shapes = {name: tuple(p.shape) for name, p in moved.items()}
            drawn = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
            trainable_state.load(
                moved, {name: matrix * np.float32(size or SIZES[kind]) for name, matrix in drawn.items()}
            )
        encoded, held_out = (
            task.inputs.encode(built.processor, part, settings.max_length) for part in (examples, held)
        )
        return SimpleNamespace(
            settings=settings, task=task, built=built, model=built.model, tokenizer=built.processor,
            examples=examples, encoded=encoded, held=held_out, moved=moved,
        )  # fmt: skip

    return make


def batch_of(b, places=PLACES):
    return b.task.inputs.collate(b.tokenizer, b.encoded, places)


def sequence(item) -> list[int]:
    return [*item["input_ids"], *item["answer"]]


@pytest.mark.parametrize("kind", ["bart", "t5"])
@pytest.mark.parametrize("lengths", [(12, 8), (5, 4)])
def test_an_encoder_reads_the_tokenizers_own_ids_and_a_decoder_its_labels_cut_at_their_lengths(bench, kind, lengths):
    b = bench(kind, max_length=lengths[0], answer_length=lengths[1])
    for item, document, summary in zip(b.encoded.items, *b.examples.inputs, strict=True):
        assert item["input_ids"] == b.tokenizer(document, truncation=True, max_length=lengths[0])["input_ids"]
        assert item["answer"] == b.tokenizer(text_target=summary, truncation=True, max_length=lengths[1])["input_ids"]
        assert item["reference"] == summary
    longest = [max(len(item[key]) for item in b.encoded.items) for key in ("input_ids", "answer")]
    assert longest == ([11, 5] if lengths == (12, 8) else [5, 4])  # 9 words and 3, and two tokens around each
    assert b.encoded.terms.tolist() == [len(item["answer"]) for item in b.encoded.items]


@pytest.mark.parametrize("kind", ["bart", "t5"])
def test_the_decoder_is_given_the_labels_as_the_model_itself_shifts_them(bench, kind) -> None:
    b = bench(kind)
    inputs, labels = batch_of(b)
    seen = []
    decoder = b.model.get_decoder()
    decoder.register_forward_pre_hook(
        lambda module, words, named: seen.append(named.get("input_ids", words[0] if words else None)), with_kwargs=True
    )
    with torch.no_grad():
        b.model(**inputs)
    (given,) = seen
    assert torch.equal(given, b.model.prepare_decoder_input_ids_from_labels(labels=labels))
    start = b.model.config.decoder_start_token_id
    for row, label in zip(given.tolist(), labels.tolist(), strict=True):
        kept = [word for word in label if word != IGNORED]
        assert row[: len(kept)] == [start, *kept[:-1]]  # a row's own words, without its last
    assert (labels == IGNORED).any()


def test_a_causal_model_reads_document_cue_and_summary_and_is_asked_for_the_summary_alone(bench) -> None:
    b = bench("llama", prompt="word1 {document} word2", max_length=6, answer_length=3)
    words = b.tokenizer.get_vocab()
    start, end, cue = words["[CLS]"], words["[SEP]"], words["word2"]
    for item, document, summary in zip(b.encoded.items, *b.examples.inputs, strict=True):
        cut = [start, words["word1"], *(words[word] for word in document.split())][:5]  # and the end, which is dropped
        assert item["input_ids"] == [*cut, cue]
        assert item["answer"] == [*(words[word] for word in summary.split()[:2]), end]
    inputs, labels = batch_of(b)
    for row, place in enumerate(PLACES):
        item, whole = b.encoded.items[place], sequence(b.encoded.items[place])
        length = len(whole) - 1
        assert inputs["input_ids"][row, :length].tolist() == whole[:-1]
        assert inputs["attention_mask"][row].sum() == length
        asked = {i: whole[i + 1] for i in range(len(item["input_ids"]) - 1, length)}  # logits i predict token i + 1
        assert {i: word for i, word in enumerate(labels[row].tolist()) if word != IGNORED} == asked


def test_words_before_a_document_are_cut_with_it_and_words_after_it_are_not(bench) -> None:
    b = bench("t5", prompt="word3 word4 {document} word5", max_length=6)
    words = b.tokenizer.get_vocab()
    for item, document in zip(b.encoded.items, b.examples.inputs[0], strict=True):
        inside = [words[word] for word in ("word3", "word4", *document.split())][:4]
        assert item["input_ids"] == [words["[CLS]"], *inside, words["word5"], words["[SEP]"]]
    plain, prefixed = bench("t5"), bench("t5", prompt="word3 ")
    expected = [plain.tokenizer(f"word3 {text}", truncation=True, max_length=12) for text in plain.examples.inputs[0]]
    assert [item["input_ids"] for item in prefixed.encoded.items] == [row["input_ids"] for row in expected]
    assert bench("llama").task.inputs.after == "\nTL;DR:" and bench("bart").task.inputs.after == ""


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_that_of_transformers_token_by_token(bench, kind) -> None:
    b = bench(kind)
    inputs, labels = batch_of(b)
    with torch.no_grad():
        logits = b.model(**inputs).logits
        if kind == "llama":
            theirs = torch.nn.utils.rnn.pad_sequence(
                [torch.tensor(sequence(b.encoded.items[i])) for i in PLACES], batch_first=True
            )
            marked = torch.full_like(theirs, IGNORED)
            for row, place in enumerate(PLACES):
                first, last = len(b.encoded.items[place]["input_ids"]), len(sequence(b.encoded.items[place]))
                marked[row, first:last] = theirs[row, first:last]
            given = {"input_ids": theirs}
        else:
            marked = labels
            shifted = b.model.prepare_decoder_input_ids_from_labels(labels=labels)
            given = {**inputs, "decoder_input_ids": shifted}
        tokens = []
        for row, column in (marked != IGNORED).nonzero().tolist():
            one = torch.full_like(marked, IGNORED)
            one[row, column] = marked[row, column]
            own = torch.full_like(labels, IGNORED)
            place = column - 1 if kind == "llama" else column
            own[row, place] = labels[row, place]
            found = b.task.target.loss(logits, own).item()
            # One cross-entropy of about 3.4 in float32, by two orders of its sum.
            assert found == pytest.approx(b.model(**{**given, "labels": one}).loss.item(), abs=1e-5)
            tokens.append(found)
        whole = b.model(**{**given, "labels": marked}).loss.item()
    assert len(tokens) == int(b.encoded.terms[PLACES].sum())
    assert b.task.target.loss(logits, labels).item() == pytest.approx(np.mean(tokens), abs=1e-5)
    assert np.mean(tokens) == pytest.approx(whole, abs=1e-5) and np.std(tokens) > 0.05


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("more", [{"micro_batch": 1}, {"micro_batch": 3}, {"gradient_checkpointing": True}])
def test_micro_batches_give_the_step_of_the_whole_batch_and_checkpointing_its_bits(bench, kind, more) -> None:
    found = []
    for changed in ({}, more):
        b = bench(kind, size=0.05, batch_size=8, clip=0.0, optimizer="sgd", **changed)
        batches = draw_batches(b.encoded.lengths, 8, 3, 0, np.random.default_rng(0))
        assert len(set(b.encoded.terms[batches[0]].tolist())) > 1  # of unequal weight
        before = trainable_state.read(b.moved)
        trained = train_steps(b.model, b.moved, b.tokenizer, b.encoded, batches, b.task, b.settings)
        found.append((trained.loss, {name: m - before[name] for name, m in trainable_state.read(b.moved).items()}))
    (loss, whole), (loss_of_parts, parts) = found
    if "gradient_checkpointing" in more:
        assert loss == loss_of_parts and all(np.array_equal(parts[name], m) for name, m in whole.items())
    assert loss_of_parts == pytest.approx(loss, rel=1e-5)
    for name, matrix in whole.items():
        # Sums of float32 gradients in another order.
        np.testing.assert_allclose(parts[name], matrix, rtol=0, atol=1e-5 * max(np.abs(matrix).max(), 1e-2))


def greedy(b, item) -> str:
    """Write one summary alone, one token at a time, without a cache or padding."""
    model, ids, end = b.model, torch.tensor([item["input_ids"]]), b.tokenizer.eos_token_id
    both = model.config.is_encoder_decoder
    written = [model.config.decoder_start_token_id] if both else []
    while len(written) < b.settings.answer_length + both:
        if both:
            logits = model(input_ids=ids, decoder_input_ids=torch.tensor([written]), use_cache=False).logits
        else:
            logits = model(torch.cat([ids, torch.tensor([written], dtype=torch.int64)], dim=1), use_cache=False).logits
        written.append(int(logits[0, -1].argmax()))
        if written[-1] == end:
            break
    return b.tokenizer.decode(written, skip_special_tokens=True).strip()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_greedily_is_the_most_likely_token_each_time(bench, kind) -> None:
    b = bench(kind)
    places = list(range(12))
    inputs, labels = batch_of(b, places)
    with torch.no_grad():
        found = write(b.model, b.tokenizer, inputs, labels, b.settings.answer_length, 1)
        assert found == [greedy(b, b.encoded.items[place]) for place in places]
    assert len(set(found)) > 3


@pytest.mark.parametrize("kind", KINDS)
def test_beams_are_those_of_transformers_and_nothing_else_of_the_models_own_way_to_generate(bench, kind) -> None:
    b = bench(kind)
    inputs, labels = batch_of(b, [2])
    prompt = {"input_ids": torch.tensor([b.encoded.items[2]["input_ids"]])}
    with torch.no_grad():
        expected, start = b.model.generate(**prompt, max_new_tokens=8, num_beams=3, do_sample=False), 0
        if kind == "llama":
            start = prompt["input_ids"].shape[1]
        theirs = b.tokenizer.decode(expected[0, start:], skip_special_tokens=True).strip()
        own = b.model.generation_config
        own.min_length, own.no_repeat_ngram_size, own.repetition_penalty, own.do_sample = 50, 1, 9.0, True
        assert write(b.model, b.tokenizer, inputs, labels, 8, 3) == [theirs]
        assert b.model.generation_config is own and own.min_length == 50
        for length in (1, 3):
            (text,) = write(b.model, b.tokenizer, inputs, labels, length, 1)
            assert len(text.split()) <= length


@pytest.mark.parametrize("kind", KINDS)
def test_an_evaluation_draws_nothing_and_in_batches_equals_one_by_one(bench, kind) -> None:
    b = bench(kind)
    texts = [greedy(b, item) for item in b.held.items]
    for place, text in enumerate(texts):  # some references that are met in part, or wholly
        b.held.items[place]["reference"] += f" {text}" if place % 3 else ""
    state = torch.manual_seed(1).get_state()
    found = evaluate(b.model, b.tokenizer, b.held, b.task, batch_size=5)
    assert evaluate(b.model, b.tokenizer, b.held, b.task, batch_size=5) == found
    assert torch.equal(torch.get_rng_state(), state)
    assert found == pytest.approx(evaluate(b.model, b.tokenizer, b.held, b.task, batch_size=1), abs=1e-5)
    names = ["rougeL", "rouge1", "rouge2"]
    each = [rouge(names, [t], [item["reference"]])[0] for t, item in zip(texts, b.held.items, strict=True)]
    assert [found[name] for name in names] == pytest.approx(np.mean(each, axis=0)) and found["rouge2"] > 0
    first = [float(row[0]) for row in each]
    spread = sum((value - sum(first) / 12) ** 2 for value in first) / 11
    assert found["rougeL_stderr"] == pytest.approx(math.sqrt(spread / 12)) and spread > 0
    assert list(found) == ["rougeL", "rouge1", "rouge2", "rougeL_stderr", "loss"]


def test_the_evaluations_loss_is_the_mean_over_all_tokens(bench) -> None:
    b = bench("bart")
    losses = []
    for i in range(len(b.held)):
        inputs, labels = b.task.inputs.collate(b.tokenizer, b.held, [i])
        with torch.no_grad():
            losses += F.cross_entropy(b.model(**inputs).logits[0], labels[0], reduction="none").tolist()
    assert len(losses) == b.held.terms.sum()
    found = evaluate(b.model, b.tokenizer, b.held, b.task, batch_size=5)
    assert found["loss"] == pytest.approx(np.mean(losses), rel=1e-6)
    assert evaluate(b.model, b.tokenizer, b.held.take(np.array([3])), b.task).keys() == found.keys() - {"rougeL_stderr"}


def test_a_reference_is_the_summary_as_it_is_written_not_what_the_tokenizer_knows_of_it(bench) -> None:
    b = bench("bart", answer_length=3)
    long = {**b.held.items[2], "reference": "Good unheard-of words"}
    held = b.held.take(np.array([2]))
    held.items[0] = long
    b.model.generate = lambda **_: torch.tensor([b.tokenizer.convert_tokens_to_ids(["good", "word1"])])
    # One of two written words stands in a reference of four: precision 1/2, recall 1/4, F1 1/3.
    assert evaluate(b.model, b.tokenizer, held, b.task)["rouge1"] == pytest.approx(1 / 3)


def test_rouge_is_f1_of_stemmed_words_pairs_of_words_and_the_longest_common_order() -> None:
    texts = ["the cat sat there", "running dogs", "", "a b c d"]
    references = ["the cat was sitting there", "a dog runs", "words", "d c b a"]
    found = rouge(["rouge1", "rouge2", "rougeL"], texts, references)
    # 1: the, cat, there of 4 and 5 words; the pair "the cat" of 3 and 4; the, cat, there in order. "sat" is no "sit".
    assert found[0] == pytest.approx([6 / 9, 2 / 7, 6 / 9])
    # 2: run and dog of 2 and 3 words after stemming ("dogs" and "dog", "running" and "runs"), no pair, one in order.
    assert found[1] == pytest.approx([4 / 5, 0, 2 / 5])
    assert found[2].tolist() == [0, 0, 0]
    assert found[3] == pytest.approx([1, 0, 1 / 4])
    assert rouge(["rougeL", "rouge1"], texts[:1], references[:1])[0] == pytest.approx([6 / 9, 6 / 9])


def test_a_loss_that_is_not_finite_is_named(bench) -> None:
    b = bench("bart")
    next(iter(b.moved.values())).data.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="the model's mean loss is nan: training has diverged"):
        evaluate(b.model, b.tokenizer, b.held, b.task)
