"""What `bench questions` runs and records; the commands themselves have tests of their own."""

import json

from benchmarks import questions

KIND = {"accuracy": 0.9, "chance": 0.2, "questions": 4}


def test_it_fine_tunes_a_captioner_and_asks(tmp_path, monkeypatch, capsys):
    ran = []

    def timed(*words):
        ran.append(words)
        return 1.0

    def measured(*words):
        ran.append(words)
        if "--questions" in words:
            return {**KIND, "by_type": {"colour": KIND}}
        return {"t2i_recall_at_1": 0.5, "i2t_recall_at_1": 0.6}

    monkeypatch.setattr(questions, "timed", timed)
    monkeypatch.setattr(questions, "measured", measured)
    monkeypatch.setattr(questions, "_preset", lambda run: "bitgen:tiny")
    made = questions.main(["--first", "4", "--steps", "3", "--out", str(tmp_path)])
    train, tune, ask, before, after = ran
    assert train[:4] == ("train", "bitgen:tiny", "--data", "shapes")
    assert {"--new-words", "questions:shapes", "--init"} <= {*tune}
    assert ask[0] == "eval"
    assert before[1] == train[train.index("--out") + 1]
    assert after[1] == tune[tune.index("--out") + 1]
    rows = [json.loads(line) for line in (tmp_path / "questions.jsonl").read_text().splitlines()]
    assert len(rows) == len(made) == 8
    values = {row["case"]: row["median"] for row in rows}
    assert values["bitgen:tiny, right about colour"] == 0.9
    assert values["bitgen:tiny, right about colour by a constant answer"] == 0.2
    assert values["bitgen:tiny, R@1 image to text after"] == 0.6
    assert "right about colour" in capsys.readouterr().out
    ran.clear()
    questions.main(["--init", "run", "--out", str(tmp_path)])
    assert ran[0][:3] == ("train", "--init", "run")
