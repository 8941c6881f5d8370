"""Tasks: multiple choice by likelihood, and perplexity, by `eval --tasks` and by lm-eval."""

import json
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import bridge
import jaxmodels
from benchmarks import lm_eval as harness
from jaxmodels.__main__ import main
from jaxmodels.commands.eval_tasks import Question, measure, read_tasks
from jaxmodels.errors import CORRUPT, USAGE, Problem
from jaxmodels.runtime.likelihood import Scorer
from tests.bridge.helpers import vocabulary, write_run

TASKS = Path(__file__).parents[1] / "tasks"
CHOICES, TEXTS = read_tasks(TASKS / "choices.jsonl"), read_tasks(TASKS / "texts.jsonl")
ARCHS = ["charlm", "wikigpt", "bwetaf", "wigip"]


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> dict[str, tuple[Path, Path]]:
    """Of each architecture a run and its model directory."""
    folder = tmp_path_factory.mktemp("tasks")
    made = {}
    for arch in ARCHS:
        run = write_run(folder / f"{arch}-run", {3: 1.0}, spec=f"{arch}:tiny")
        bridge.convert(run, folder / arch, verify="none")
        made[arch] = run, folder / arch
    return made


@cache
def scorer_of(path: Path, batch: int = 8) -> Scorer:
    source = bridge.open_checkpoint(path)
    return Scorer(bridge.load(path), source.tokenizer, batch)


def test_every_model_from_its_run_and_its_directory(paths):
    for run, directory in paths.values():
        found = [measure(scorer_of(run), CHOICES), measure(scorer_of(directory), CHOICES)]
        one, two = ([row["loglikelihoods"] for row in each["answers"]] for each in found)
        for a, b in zip(one, two, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5)
        rows = found[0]["answers"]
        assert [row["chosen"] for row in rows] == [int(np.argmax(values)) for values in one]
        right = [row["chosen"] == question.answer
                 for row, question in zip(rows, CHOICES.questions, strict=True)]  # fmt: skip
        assert found[0]["acc"] == sum(right) / 4


def by_transformers(model, tokenizer, context: str, text: str) -> float:
    """Log-likelihood of a text after its context, by windows that PyTorch scores."""
    known = len(tokenizer.encode(context.rstrip() or context))
    tokens = tokenizer.encode(context + text)
    most, total = model.config.n_positions, 0.0
    at = known
    while at < len(tokens):
        end = min(at + most, len(tokens))
        part = tokens[max(0, end - 1 - most) : end].tolist()
        with torch.no_grad():
            logits = model(torch.tensor([part[:-1]])).logits[0].double()
        chosen = logits.log_softmax(-1).gather(1, torch.tensor(part[1:])[:, None])[:, 0]
        total += float(chosen[-(end - at) :].sum())
        at = end
    return total


def test_likelihoods_are_transformers_own(paths):
    from transformers import GPT2LMHeadModel

    _, directory = paths["wikigpt"]
    model = GPT2LMHeadModel.from_pretrained(directory).eval()
    scorer = scorer_of(directory)
    found = measure(scorer, CHOICES)
    for row, question in zip(found["answers"], CHOICES.questions, strict=True):
        wanted = [by_transformers(model, scorer.tokenizer, *pair) for pair in question.pairs]
        np.testing.assert_allclose(row["loglikelihoods"], wanted, atol=1e-4)
    total = sum(scorer.rolling(TEXTS.texts))
    wanted = sum(by_transformers(model, scorer.tokenizer, "\n\n", text) for text in TEXTS.texts)
    # A blank line stands before each text, which does not count.
    assert total == pytest.approx(wanted, abs=1e-4 * len(TEXTS.texts))
    size = sum(len(text.encode()) for text in TEXTS.texts)
    assert measure(scorer, TEXTS)["bits_per_byte"] == pytest.approx(-total / size / np.log(2))


def test_a_window_for_each_character():
    """wigip's next_char reads a whole grid, behind characters of id 0, as `generate` does."""
    from data_pipelines.characters import CharTokenizer

    tokenizer = CharTokenizer.from_json(vocabulary(64))
    model = jaxmodels.create("wigip:tiny", seed=0)
    scorer = Scorer(model, tokenizer)
    ((total, _),) = scorer.loglikelihood([("ab", "cd")])
    ids, wanted = tokenizer.encode("abcd"), 0.0
    for at in (2, 3):
        window = np.zeros((1, model.config.context), np.int32)
        window[0, -at:] = ids[:at]
        logits = np.asarray(model(jnp.asarray(window))[0], np.float64)[0]
        wanted += logits[ids[at]] - np.log(np.exp(logits).sum())
    assert total == pytest.approx(wanted, abs=1e-4)


def test_the_command(paths, capsys):
    run, _ = paths["wikigpt"]
    files = [str(TASKS / name) for name in ("choices.jsonl", "texts.jsonl")]
    assert main(["eval", str(run), "--tasks", *files, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["tasks"]
    assert found[files[0]]["questions"] == 4
    assert found[files[1]]["texts"] == 2
    assert main(["eval", str(run), "--tasks", files[0], "--tasks", files[1]]) == 0
    shown = capsys.readouterr().out
    assert "of 4 questions right" in shown
    assert "bits per byte" in shown
    others = ["--data", "pydoc"], ["--max-batches", "2"], ["--table", "t.md"], ["--caption-metrics"]
    for other in others:
        assert main(["eval", str(run), "--tasks", files[0], *other]) == USAGE
        assert f"--tasks and {other[0]} do not go together" in capsys.readouterr().err


def test_forms_of_a_question(tmp_path):
    rows = [
        ({"context": "a", "choices": ["b", "c"], "answer": 1}, 1),
        ({"context": "a", "choices": ["b", "c"], "answer": "B"}, 1),
        ({"context": "a", "choices": ["7", "1"], "answer": "1"}, 1),
        (
            {
                "question": "a",
                "choices": {"text": ["x", "y"], "label": ["1", "2"]},
                "answerKey": "2",
            },
            1,
        ),
        ({"ctx": "a", "endings": ["b", "c"], "label": "0"}, 0),
    ]
    file = tmp_path / "t.jsonl"
    file.write_text("\n".join(json.dumps(row) for row, _ in rows))
    assert [q.answer for q in read_tasks(file).questions] == [answer for _, answer in rows]
    spaces = Question(1, "a", (" b", "c"), 0), Question(1, "a\n", ("b", "c"), 0)
    assert [text for q in spaces for _, text in q.pairs] == [" b", " c", "b", "c"]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ('{"context": "a", "answer": 0}', "no choices"),
        ('{"context": "a", "choices": ["b"], "answer": 0}', "two or more"),
        ('{"context": "a", "choices": ["b", 3], "answer": 0}', "list of texts"),
        ('{"context": "a", "choices": ["b", "c"]}', "no answer"),
        ('{"context": "a", "choices": ["b", "c"], "answer": 2}', "none of its choices"),
        ('{"choices": ["b", "c"], "answer": 1}', "no context"),
        (
            '{"context": "a", "choices": {"text": ["b", "c"], "label": ["1", "2", "3"]},'
            ' "answerKey": "3"}',
            "none of its choices",
        ),
        ('{"text": ""}', "text is empty"),
        ("[1]", "not an object"),
        ("{", "not JSON"),
    ],
)
def test_what_is_no_question(tmp_path, row, why):
    file = tmp_path / "t.jsonl"
    file.write_text('{"text": "a"}\n' + row)
    with pytest.raises(Problem) as caught:
        read_tasks(file)
    assert caught.value.exit_code == CORRUPT
    assert "line 2" in caught.value.what
    assert why in caught.value.why


def test_half_of_a_character_is_replaced(tmp_path):
    row = {"context": "\ud800", "choices": ["a\udfff", "b"], "answer": 0}
    (tmp_path / "t.jsonl").write_text(json.dumps(row))
    (question,) = read_tasks(tmp_path / "t.jsonl").questions
    assert question.pairs == [("\ufffd", " a\ufffd"), ("\ufffd", " b")]


def test_a_choice_that_adds_no_token_is_scored_by_its_last():
    """Else nothing would be scored, and its log-likelihood, 0, would be the best."""
    scorer = Scorer.__new__(Scorer)
    joined = {"a": [5], "a??": [5, 1], "a?": [5, 1]}  # one token for all that is unknown
    scorer.tokenizer = SimpleNamespace(
        encode=lambda text: np.asarray(joined.get(text, []), np.int32), end_of_text=9
    )
    found = []

    def scored(texts):
        found.extend((tokens.tolist(), start) for tokens, start in texts)
        return [(0.0, True) for _ in texts]

    scorer._scored = scored
    scorer.loglikelihood([("a?", "?"), ("a", "?"), ("", "a")])
    assert found == [([5, 1], 1), ([5, 1], 1), ([9, 5], 1)]


def test_no_tasks_at_all(tmp_path):
    (tmp_path / "t.jsonl").write_text("\n")
    for name, text in (("t.jsonl", "no tasks"), ("none.jsonl", "cannot be read")):
        with pytest.raises(Problem, match=text):
            read_tasks(tmp_path / name)


def test_the_adapter_answers_the_harness_requests(paths, monkeypatch):
    """By lm-eval's interface: a class LM, and requests with `args`."""
    import sys
    from types import ModuleType

    for name in ("lm_eval", "lm_eval.api", "lm_eval.api.model"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["lm_eval.api.model"].LM = object
    for run, _ in paths.values():
        scorer = scorer_of(run)
        model = harness.adapter(scorer)
        pairs = [pair for question in CHOICES.questions[:2] for pair in question.pairs]
        found = model.loglikelihood([SimpleNamespace(args=pair) for pair in pairs])
        rows = measure(scorer, CHOICES)["answers"][:2]
        wanted = [value for row in rows for value in row["loglikelihoods"]]
        np.testing.assert_allclose([total for total, _ in found], wanted, rtol=1e-5)
        texts = [SimpleNamespace(args=(text,)) for text in TEXTS.texts]
        assert model.loglikelihood_rolling(texts) == pytest.approx(scorer.rolling(TEXTS.texts))


@pytest.mark.slow
def test_lm_eval_itself_agrees(paths, tmp_path, monkeypatch):
    """The same questions as a task of the harness, from files alone."""
    library = pytest.importorskip("lm_eval")
    from lm_eval.tasks import TaskManager

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    data = tmp_path / "data.jsonl"
    rows = [{"context": q.context, "choices": list(q.choices), "answer": q.answer}
            for q in CHOICES.questions]  # fmt: skip
    data.write_text("\n".join(json.dumps(row) for row in rows))
    task = (TASKS / "choices.yaml").read_text().replace("DATA", str(data))
    (tmp_path / "choices.yaml").write_text(task)
    for arch in ARCHS:
        scorer = scorer_of(paths[arch][1])
        found = library.simple_evaluate(
            model=harness.adapter(scorer),
            tasks=["local_choices"],
            task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
            bootstrap_iters=0,
        )["results"]["local_choices"]
        ours = measure(scorer, CHOICES)
        assert found["acc,none"] == pytest.approx(ours["acc"])
        assert found["acc_norm,none"] == pytest.approx(ours["acc_norm"])
