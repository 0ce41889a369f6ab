"""`--coordinator-address`: hosts that share a model write what one device writes.

`EMSJAX_TEST_ROUNDS=20 scripts/test -m slow tests/generate/test_several_hosts.py` kills a host at 20
random moments of jobs of 200 prompts; `EMSJAX_TEST_SEED` chooses others.
"""

import json
import os
import random
import shutil
import socket
import time

import pytest

pytest.importorskip("torch")

import numpy as np
from safetensors.numpy import load_file, save_file

from tests import tiny
from tests.generate import commands
from tests.generate.several_hosts import start, start_one

# A tiny model that eight devices can share.
tiny.TINY["eight"] = ("llama", tiny.LLAMA_SIZES | {"num_attention_heads": 8, "head_dim": 8})
ROUNDS = int(os.environ.get("EMSJAX_TEST_ROUNDS", "2"))
JOB = 200 if "EMSJAX_TEST_ROUNDS" in os.environ else 60
SEED = os.environ.get("EMSJAX_TEST_SEED", "26")
# How a host says that the other one is not there.
MISSED = (
    "is gone: its process has ended",
    "ended before all hosts had come",
    "has not come within 60 s",
    "has not answered for 60 s",
)
CHOICE = ["yes", "yes, of course", "no"]
# Few shapes of a step: each host compiles its own programs.
SMALL = ("--batch-size=2", "--drafter=prompt-lookup", "--draft-length=1", "--max-model-len=128")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.letter_checkpoint("eight", tmp_path_factory.mktemp("eight") / "model")


def ended(processes):
    """See `commands.ended`; hosts that share a machine take their time."""
    return commands.ended(processes, timeout=300)


def write_prompts(file, count, longest, more=lambda n: {}):
    """Writes prompts that repeat themselves, every other one of them to be sampled.

    `more` returns further keys of the line with a number.
    """
    lines = [
        {
            "id": n,
            "prompt_token_ids": [3 + n % 60, 4, 5 + n % 7] * (1 + n % 5),
            "temperature": n % 2,
            "max_tokens": 5 + n % longest,
            "ignore_eos": True,
            **more(n),
        }
        for n in range(count)
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def in_turn(n):
    """Returns keys for greedy texts, then also for those in a grammar and prompts with scores."""
    if n < 4 or n % 4 == 0:
        return {"temperature": 0}
    if n % 4 == 2:
        return {"prompt_logprobs": 1}
    return {"structured_outputs": {"choice": CHOICE}, "ignore_eos": False, "max_tokens": 20}


def results(file):
    """Returns what does not depend on time, by id; fails if an id is there twice."""
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    found = {line["id"]: (line["token_ids"], line["finish_reason"]) for line in lines}
    assert len(found) == len(lines)
    return found


def scores(file):
    """Returns the log-probabilities of the tokens of all prompts that have them, by id."""
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return {
        line["id"]: [each["logprob"] for each in line["prompt_logprobs"][1:]]
        for line in lines
        if "prompt_logprobs" in line
    }


def texts_in_grammar(file):
    """Returns the texts that have a grammar."""
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return [line["text"] for line in lines if "structured_outputs" in in_turn(line["id"])]


@pytest.mark.slow
def test_two_hosts_with_four_devices_each_write_the_same(model, tmp_path):
    file, one, two = (tmp_path / name for name in ("in", "one", "two"))
    write_prompts(file, 12, 20, in_turn)
    # A draft model is divided like its target, which it is itself here.
    drafts = f"--draft-model={model}", "--drafter=draft-model"
    given = ["--input", file, *SMALL, *drafts]
    alone = start_one(model, [*given, "--output", one])
    ((status, said),) = ended([alone])
    assert status == 0, said
    leading, following = start([model] * 2, [*given, "--output", two], EMSJAX_CHECK_HOSTS="1")
    (status, said), (status_of_other, said_there) = ended([leading, following])
    assert (status, status_of_other) == (0, 0), said + said_there
    assert results(two) == results(one)
    assert set(texts_in_grammar(two)) <= set(CHOICE)
    found, expected = scores(two), scores(one)
    assert found.keys() == expected.keys() == {6, 10}
    for n, logprobs in found.items():
        np.testing.assert_allclose(logprobs, expected[n], atol=1e-4)
    assert f", by {model.name} on 2 hosts\n" in said
    assert said_there.startswith("host 1 of 2 works for host 0, which shows the progress\n")
    assert " is divided among 8 devices\n" in said_there


@pytest.mark.slow
def test_a_host_with_other_weights_is_refused(model, tmp_path):
    other, out = tmp_path / "other", tmp_path / "out"
    shutil.copytree(model, other)
    weights = load_file(other / "model.safetensors")
    save_file({name: 2 * value for name, value in weights.items()}, other / "model.safetensors")
    both = ended(start([model, other], ["--prompt=a", "--output", out, *SMALL], devices=1))
    why = f"host 1 ({socket.gethostname()}) has another model or draft than host 0, which has "
    assert [status for status, _ in both] == [2, 2]
    assert f"error: {why}{model.name}; name the same on all hosts\n" in both[0][1]
    assert f"error: host 0 (localhost) has ended the run: {why}" in both[1][1]
    assert not out.exists()


@pytest.mark.slow
def test_a_host_may_be_killed_at_any_moment(model, tmp_path):
    """Jobs on two hosts, of which one is killed; each is continued."""
    chance = random.Random(SEED)
    file, one, two = (tmp_path / name for name in ("in", "one", "two"))
    write_prompts(file, JOB, 30)
    given = ["--input", file, *SMALL]
    ((status, said),) = ended([start_one(model, [*given, "--output", one])])
    assert status == 0, said
    expected, kills = results(one), 0
    given += ["--output", two, "--resume"]
    while True:
        # A host that is killed before it has come is waited for.
        processes = start([model] * 2, given, devices=2, EMSJAX_TIMEOUT_S="60")
        if kills < ROUNDS:
            kills += kill_one(processes, two, chance)
        both = ended(processes)
        if both[0][0] == 0:
            assert results(two) == expected
            if kills >= ROUNDS:
                return
            two.unlink()
            continue
        for process, (status, said) in zip(processes, both, strict=True):
            ended_well = status == 2 and any(sentence in said for sentence in MISSED)
            assert status == -9 or ended_well, (process.args, status, said)


def kill_one(processes, out, chance):
    """Kills one of the hosts at a random moment; returns how many died of it."""
    before = out.stat().st_size if out.exists() else 0
    until = before + chance.choice((0, chance.randrange(1, 20_000), chance.randrange(1, 20_000)))
    victim, begun = chance.choice(processes), time.monotonic()
    started = chance.uniform(0, 10)
    while victim.poll() is None:
        written = out.stat().st_size if out.exists() else 0
        if written >= until and (until > before or time.monotonic() - begun > started):
            victim.kill()
            return 1
        time.sleep(0.001)
    return 0
