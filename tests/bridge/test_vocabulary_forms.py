"""`--vocab`: our file, the seed's, a list of characters, and invalid ones."""

import json
import os
import subprocess
import sys

import pytest

import bridge
from jaxmodels.errors import CORRUPT, DONE, MISMATCH
from tests.bridge.helpers import HEADS, SEED, command, vocabulary

FORMS = {"ours": vocabulary(53), "list": sorted(["\t", *vocabulary(54)["chars"]])}


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_convert_and_generate_take_it(form, tmp_path, capsys):
    file, out = tmp_path / "vocab.json", tmp_path / "out"
    file.write_text(json.dumps(FORMS[form]))
    call = ("generate", SEED, "--set", "heads=4", "--prompt", "hello ☂", "--max-new-tokens", "4")
    code, said, err = command(capsys, *call, "--vocab", file, "--json")
    assert code == DONE
    assert f"not in the vocabulary, read as {'<UNK>' if form == 'ours' else repr(chr(9))}" in err
    assert bridge.convert(SEED, out, config=HEADS, vocab=file).vocab_present
    code, again, _ = command(capsys, "generate", out, *call[4:], "--json")
    assert (code, again["samples"]) == (DONE, said["samples"])
    tokenizer = bridge.open_checkpoint(out).tokenizer
    text = "hello, wärld!\n\t\t☂ 漢"
    code = (
        "import json, sys\nfrom transformers import AutoTokenizer\n"
        f"tokenizer = AutoTokenizer.from_pretrained({str(out)!r})\n"
        f"ids = tokenizer.encode({text!r})\n"
        "print('\\n' + json.dumps([ids, tokenizer.decode(ids, skip_special_tokens=True)]))"
    )
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    ids, decoded = json.loads(done.stdout.splitlines()[-1])
    assert ids == tokenizer.encode(text).tolist()
    if form == "list":  # tabs are text, and nothing is dropped as a special token
        assert decoded == tokenizer.decode(ids) == text.replace("☂", "\t")


@pytest.mark.parametrize(
    ("content", "code", "says"),
    [
        (json.dumps(FORMS["list"][:-1]), MISMATCH, "has 52 entries, the model 53"),
        (json.dumps(vocabulary(54)), MISMATCH, "has 54 entries, the model 53"),
        (json.dumps(["ab"] * 53), CORRUPT, "'ab', which is not one character"),
        (json.dumps(["a"] * 53), CORRUPT, "'a' occurs twice"),
        (json.dumps({c: i for i, c in enumerate(FORMS["list"])}), CORRUPT, "list of characters"),
        (json.dumps("".join(FORMS["list"])), CORRUPT, "not a list of characters"),
        ("".join(FORMS["list"]), CORRUPT, "JSONDecodeError"),
    ],
)
def test_what_is_no_vocabulary_of_this_model(content, code, says, tmp_path, capsys):
    file = tmp_path / "vocab.json"
    file.write_text(content)
    for call in (("convert", SEED, tmp_path / "out"), ("generate", SEED)):
        found, out, err = command(capsys, *call, "--vocab", file, "--set", "heads=4")
        assert (found, out) == (code, "")
        assert says in err
        assert str(file) in err
    assert not (tmp_path / "out").exists()


def test_there_is_no_such_file(tmp_path, capsys):
    code, _, err = command(
        capsys, "generate", SEED, "--set", "heads=4", "--vocab", tmp_path / "none"
    )
    assert (code, "FileNotFoundError" in err) == (CORRUPT, True)
