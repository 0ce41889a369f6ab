"""Training a draft from end to end, and errors in its inputs and outputs."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from emsjax import LLM, SamplingParams, UserError
from emsjax.loading.draft_checkpoint import read_draft, read_manifest
from emsjax.loading.load import load_model
from emsjax.train import __main__ as command
from emsjax.train import run
from emsjax.train.batches import is_held_out
from emsjax.train.corpus import read_prompts
from emsjax.train.fit import Fitting, Progress
from emsjax.train.record import _save, read_texts
from emsjax.train.run import train
from emsjax.train.settings import Training
from tests.tiny import chat_checkpoint, checkpoint
from tests.train import runs
from tests.train.runs import PROMPTS, log

FITTING = Fitting(steps=60, rows=4, width=40, unroll=2, learning_rate=5e-3, evaluate_every=20)


def training(corpus: Path, output: Path) -> Training:
    return runs.training(corpus, output, width=64, fitting=FITTING)


@pytest.fixture(scope="module")
def trained(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("run")
    train(training(corpus, output))
    return output


def test_training_improves_the_draft_and_logs_progress(trained: Path):
    progress = log(trained)
    assert [each.step for each in progress] == [20, 40, 60]
    assert progress[-1].loss < progress[0].loss
    assert progress[-1].accepted[0] > 0.05, "guessing would give about 0.01"
    assert sorted(progress[-1].accepted) == progress[-1].accepted
    assert (trained / "curves.png").read_bytes().startswith(b"\x89PNG")
    manifest = read_manifest(trained / "draft")
    assert "prompts.jsonl" in manifest.trained_on
    assert manifest.evaluation["accepted_tokens_by_draft_length"][0] > 0.05


def test_an_interrupted_training_ends_with_the_same_draft(
    corpus: Path, trained: Path, tmp_path: Path
):
    # The order in which texts were written must not matter, so the file's halves are swapped.
    shutil.copytree(trained / "texts", tmp_path / "texts")
    _swap_halves(tmp_path / "texts" / "000000.npz")

    def killed(progress: Progress) -> None:
        if progress.step == 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(training(corpus, tmp_path), on_progress=killed)
    assert not (tmp_path / "draft").exists()
    steps = []
    train(training(corpus, tmp_path), on_progress=lambda progress: steps.append(progress.step))
    assert steps == [40, 60], "the last checkpoint was that of step 20"
    whole, resumed = (read_draft(run / "draft", np.float32)[0] for run in (trained, tmp_path))
    for one, other in zip(*(jax.tree.leaves(nnx.state(d)) for d in (whole, resumed)), strict=True):
        np.testing.assert_array_equal(one, other)
    assert log(trained) == log(tmp_path)


def _swap_halves(file: Path) -> None:
    texts = list(read_texts(file.parent))
    _save(file, texts[len(texts) // 2 :] + texts[: len(texts) // 2])


def test_a_run_with_other_settings_is_not_continued(corpus: Path, trained: Path):
    with pytest.raises(UserError, match="holds a run with layers 1, not 2"):
        train(replace(training(corpus, trained), layers=2))


def test_the_draft_is_accepted_and_does_not_change_the_text(trained: Path):
    prompts, params = PROMPTS[:6], SamplingParams(max_tokens=40, ignore_eos=True)
    model = str(checkpoint("llama3"))
    options = {"max_batch_size": 2, "max_model_len": 100, "planner": False}
    plain = LLM(model, drafter="none", max_batch_size=2, max_model_len=100)
    expected = [out.outputs[0].token_ids for out in plain.generate(prompts, params)]
    for drafter in ("draft-model", "combined"):
        llm = LLM(model, drafter=drafter, draft_model=str(trained / "draft"), **options)
        outputs = llm.generate(prompts, params)
        assert [out.outputs[0].token_ids for out in outputs] == expected
        assert sum(out.metrics.accepted_tokens for out in outputs) > 0


def test_a_draft_is_trained_further(corpus: Path, trained: Path, tmp_path: Path):
    shutil.copytree(trained / "texts", tmp_path / "texts")
    fitting = replace(FITTING, steps=20, one_ahead=0.0)
    train(replace(further(corpus, trained / "draft", tmp_path), fitting=fitting))
    before, after = log(tmp_path)
    # The draft was rounded to bfloat16 in between.
    assert before.step == 0
    assert before.accepted == pytest.approx(log(trained)[-1].accepted, abs=0.02)
    assert after.step == 20
    (was, ids), (now, same_ids) = (
        read_draft(run / "draft", np.float32) for run in (trained, tmp_path)
    )
    np.testing.assert_array_equal(ids, same_ids)
    assert now.config == was.config
    pairs = zip(*(jax.tree.leaves(nnx.state(draft)) for draft in (was, now)), strict=True)
    assert not any(np.array_equal(one, other) for one, other in pairs)
    assert f"had learnt from: {read_manifest(trained / 'draft').trained_on}" in (
        read_manifest(tmp_path / "draft").trained_on
    )


def further(corpus: Path, draft: Path, output: Path) -> Training:
    return replace(training(corpus, output), start_from=str(draft))


def test_a_draft_that_cannot_be_trained_further(corpus: Path, trained: Path, tmp_path: Path):
    start = further(corpus, trained / "draft", tmp_path / "run")
    with pytest.raises(UserError, match="kind is jakiro, but only recurrent drafts can be trained"):
        train(replace(start, kind="jakiro"))
    with pytest.raises(UserError, match=r"was trained for .*, not for"):
        train(replace(start, model=str(checkpoint("mistral"))))
    with pytest.raises(UserError, match=r"is not the directory of a trained draft, because it has"):
        train(replace(start, start_from=str(trained)))
    with pytest.raises(UserError, match="emsjax comes with no draft for"):
        train(replace(start, start_from="shipped"))
    shutil.copytree(trained / "draft", tmp_path / "draft")
    manifest = json.loads((tmp_path / "draft" / "draft.json").read_text())
    sizes = manifest["sizes"] | {"num_heads": 2, "num_kv_heads": 1, "head_dim": 8, "vocab_size": 9}
    del sizes["num_layers"]
    (tmp_path / "draft" / "draft.json").write_text(
        json.dumps(manifest | {"kind": "jakiro", "sizes": sizes})
    )
    with pytest.raises(UserError, match="is of the kind jakiro, but only recurrent drafts can"):
        train(replace(start, start_from=str(tmp_path / "draft")))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["~nosuchuser/draft", "x" * 300, ""])
def test_a_draft_to_start_from_that_cannot_be_looked_up(corpus: Path, tmp_path: Path, name: str):
    with pytest.raises(UserError, match=r"^start_from (is )?'.*'(;| cannot be looked up) .*give"):
        train(replace(training(corpus, tmp_path / "run"), start_from=name))
    assert not (tmp_path / "run").exists()


def test_a_draft_to_start_from_is_not_overwritten(corpus: Path, trained: Path, tmp_path: Path):
    shutil.copytree(trained / "draft", tmp_path / "draft")
    with pytest.raises(UserError, match="is where this run writes its own draft"):
        train(further(corpus, tmp_path / "run" / ".." / "draft", tmp_path))
    assert [each.name for each in tmp_path.iterdir()] == ["draft"]


def test_a_training_does_not_continue_with_another_draft_to_start_from(
    corpus: Path, trained: Path, tmp_path: Path
):
    shutil.copytree(trained / "draft", tmp_path / "draft")
    shutil.copytree(trained / "texts", tmp_path / "run" / "texts")

    def killed(_progress: Progress) -> None:
        raise KeyboardInterrupt

    start = further(corpus, tmp_path / "draft", tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        train(start, on_progress=killed)
    file = tmp_path / "draft" / "draft.safetensors"
    tensors = load_file(file)
    ids = tensors["token_ids"]
    unused = np.setdiff1d(np.arange(100, dtype=np.int32), ids)
    save_file(tensors | {"token_ids": np.sort(np.append(ids[1:], unused[:1]))}, file)
    with pytest.raises(UserError, match="went on from another draft than"):
        train(start)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--start-from", ""], "--start-from is ''"),
        (["--kind", "jakiro"], "kind is jakiro, but only recurrent drafts can be trained further"),
        (["--width", "64"], "width is 64, but the draft to start from determines it"),
        (["--steps", "0"], "steps is 0, but a recurrent draft learns by updates only"),
        (["--vocabulary", "80"], "vocabulary is 80, but the draft to start from determines it"),
    ],
)
def test_options_that_do_not_go_with_a_draft_to_start_from(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    output = tmp_path / "run"
    assert command.main(["--output", str(output), "--start-from", "shipped", *options]) == 2
    assert message in capsys.readouterr().err
    assert not output.exists()


def test_a_draft_for_another_target_is_refused(trained: Path):
    with pytest.raises(UserError, match=r"was trained for .*, not for"):
        LLM(str(checkpoint("mistral")), draft_model=str(trained / "draft"))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("draft.safetensors", b"no tensors", "is damaged"),
        ("draft.json", b"{", "draft.json"),
        ("draft.json", b'{"format": 2}', "format this version cannot read"),
        ("draft.json", b'{"format": 1, "target": "x"}', "is damaged"),
    ],
)
def test_a_damaged_draft_is_refused(
    trained: Path, tmp_path: Path, file: str, content: bytes, message: str
):
    shutil.copytree(trained / "draft", tmp_path / "draft")
    (tmp_path / "draft" / file).write_bytes(content)
    with pytest.raises(UserError, match=message):
        LLM(str(checkpoint("llama3")), draft_model=str(tmp_path / "draft"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"no prompt in .* has between 1 and \d+ tokens"),
        ('{"prompt_token_ids": [4]}\nnonsense\n', "line 2: not JSON"),
        ('{"text": ["a", "b"]}', "line 1: text must be text, not a list"),
        ('{"prompt": 7}', "line 1: prompt must be text, not a number"),
        ('{"messages": ["a"]}', "line 1: each of messages must be an object"),
        # Ends of lines to Python, none to JSON: line 2 is the third line of the text.
        ('{"prompt_token_ids": [4], "x": "\u2028"}\nnonsense\n', "line 2: not JSON"),
        ('{"prompt": "text"}\n', "the target has no tokenizer"),
        (
            '{"prompt_token_ids": [4, 999999]}\n',
            "token id 999999 is outside the vocabulary; give ids from 0 to",
        ),
        ('{"prompt_token_ids": "123"}\n', "must be a list of whole numbers"),
        ('{"prompt_token_ids": [4, 5]}\n', r"too few prompts \(1\) to train on some and hold out"),
    ],
)
def test_invalid_prompt_files(tmp_path: Path, content: str, message: str):
    file = tmp_path / "bad.jsonl"
    file.write_text(content)
    with pytest.raises(UserError, match=message):
        train(training(file, tmp_path / "run"))


def test_too_few_prompts_are_refused_before_the_target_writes(tmp_path: Path):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt_token_ids": [4, 5]}\n')
    fitting = replace(FITTING, steps=2, evaluate_every=2)
    settings = replace(training(file, tmp_path / "run"), fitting=fitting, held_out=0.5)
    with pytest.raises(UserError, match="too few"):
        train(settings)
    file.write_text("".join(json.dumps({"prompt_token_ids": p}) + "\n" for p in PROMPTS[:8]))
    train(settings)


def test_a_training_that_diverges_writes_no_draft(corpus: Path, trained: Path, tmp_path: Path):
    shutil.copytree(trained / "texts", tmp_path / "texts")
    fitting = replace(FITTING, steps=2, evaluate_every=2, learning_rate=float("inf"))
    settings = replace(training(corpus, tmp_path), fitting=fitting)
    with pytest.raises(UserError, match=r"has diverged .at update 2 .* give a smaller --learning"):
        train(settings)
    assert not (tmp_path / "draft").exists()


def test_what_to_lower_without_memory_is_named(
    corpus: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: object) -> None:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    shutil.copytree(trained / "texts", tmp_path / "texts")
    monkeypatch.setattr(run, "fit", fail)
    with pytest.raises(UserError, match=r"ran out of memory .* give fewer --rows"):
        train(training(corpus, tmp_path))


def test_training_works_without_matplotlib(
    corpus: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(run, "can_draw", lambda: False)
    shutil.copytree(trained / "texts", tmp_path / "run" / "texts")
    shutil.copy(trained / "settings.json", tmp_path / "run")
    assert train(training(corpus, tmp_path / "run")).is_dir()
    assert not (tmp_path / "run" / "curves.png").exists()


def test_plain_text_may_have_any_line_ending(tmp_path: Path):
    target = load_model(str(chat_checkpoint("llama", tmp_path / "model")))
    for number, end in enumerate(("\n", "\r\n", "\r")):
        file = tmp_path / f"{number}.txt"
        file.write_bytes(f"w7 w8{end}{end}w9{end}".encode())
        assert read_prompts([file], target, 100) == [[7, 8], [9]]


def test_a_failed_command_leaves_nothing_behind(corpus: Path, tmp_path: Path):
    output = tmp_path / "run"
    for wrong in (
        {"inputs": (tmp_path / "typo.jsonl",)},
        {"dtype": "float3"},
        {"model": "no/such"},
    ):
        with pytest.raises(UserError):
            train(replace(training(corpus, output), **wrong))
    assert not output.exists()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write to"):
        train(training(corpus, tmp_path / "file" / "run"))


def test_a_run_with_changed_prompts_is_not_continued(trained: Path, tmp_path: Path):
    shutil.copytree(trained, tmp_path / "run")
    changed = tmp_path / "prompts.jsonl"
    changed.write_text("".join(f'{{"prompt_token_ids": [4, {n}]}}\n' for n in range(3, 63)))
    settings = tmp_path / "run" / "settings.json"
    content = json.loads(settings.read_text()) | {"inputs": [str(changed)]}
    settings.write_text(json.dumps(content))
    with pytest.raises(UserError, match="holds a run with other prompts"):
        train(training(changed, tmp_path / "run"))


@pytest.mark.parametrize("file", ["settings.json", "log.jsonl", "texts/000000.npz"])
def test_a_damaged_run_is_refused(corpus: Path, trained: Path, tmp_path: Path, file: str):
    shutil.copytree(trained, tmp_path / "run")
    whole = (tmp_path / "run" / file).read_bytes()
    (tmp_path / "run" / file).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"is (damaged|not valid JSON).*delete it and run again"):
        train(training(corpus, tmp_path / "run"))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sizes", []),
        ("sizes", {"hidden_size": 32, "intermediate_size": 64, "num_layers": -1}),
        ("probe", ["a"]),
        ("probe", [[1.0], [1.0, 2.0]]),
        ("probe", None),
    ],
)
def test_a_manifest_with_invalid_values_is_refused(
    trained: Path, tmp_path: Path, field: str, value: object
):
    shutil.copytree(trained / "draft", tmp_path / "draft")
    file = tmp_path / "draft" / "draft.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {field: value}))
    with pytest.raises(UserError, match=r"draft.json is damaged .*; train it again"):
        read_manifest(tmp_path / "draft")


@pytest.mark.parametrize("ids", [[], [3, 2], [-1, 2], [[1, 2]], [1, 1], [5, 10**6]])
def test_a_draft_with_invalid_token_ids_is_refused(
    corpus: Path, trained: Path, tmp_path: Path, ids: list
):
    shutil.copytree(trained / "draft", tmp_path / "draft")
    file = tmp_path / "draft" / "draft.safetensors"
    save_file(load_file(file) | {"token_ids": np.asarray(ids, np.int32)}, file)
    with pytest.raises(UserError, match="is damaged"):
        LLM(str(checkpoint("llama3")), draft_model=str(tmp_path / "draft"))
    with pytest.raises(UserError, match="is damaged"):
        train(further(corpus, tmp_path / "draft", tmp_path / "run"))


def test_duplicates_of_a_prompt_are_held_out_together():
    prompts = [[n % 20, 7, 9] for n in range(60)]
    held = [is_held_out(prompt, 0.3) for prompt in prompts]
    assert held[:20] == held[20:40] == held[40:]
    assert 0 < sum(held) < 60


def test_several_devices_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert command.main(["--output", str(tmp_path / "run"), "--tensor-parallel", "2"]) == 2
    assert "a draft is trained with the model on one device" in capsys.readouterr().err


def test_the_command_reports_an_error_without_traceback(tmp_path: Path):
    command = [sys.executable, "-m", "emsjax.train", "--input", "no/such.jsonl"]
    command += ["--output", str(tmp_path / "run"), "--model", str(checkpoint("llama3"))]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "cannot read 'no/such.jsonl'" in result.stderr
    assert "Traceback" not in result.stderr
