"""The recorded hidden states are those from which the target chose its tokens."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from emsjax.loading.load import LoadedModel, load_model
from emsjax.train.record import Text, Writing, read_texts, record
from tests.tiny import checkpoint

WRITING = Writing(outputs=2, max_tokens=12, batch_size=4, temperature=1.0)
PROMPTS = [[5, 6, 7, 8, n, 9, 10] for n in range(11, 21)]


@pytest.fixture(scope="module")
def target() -> LoadedModel:
    return load_model(checkpoint("llama3"))


def by_key(directory: Path) -> dict[tuple[int, int], Text]:
    texts = list(read_texts(directory))
    found = {(text.prompt, text.output): text for text in texts}
    assert len(found) == len(texts), "no text is written twice"
    return found


def test_tokens_follow_from_the_recorded_hidden_states(target: LoadedModel, tmp_path: Path):
    record(target, PROMPTS, tmp_path, WRITING)
    texts = by_key(tmp_path)
    assert {prompt for prompt, _ in texts} == set(range(len(PROMPTS)))
    for (_, output), text in texts.items():
        assert text.hidden.shape == (len(text.tokens) - 1, 32)
        logits = target.model.logits(jnp.asarray(text.hidden, jnp.float32))
        if output == 0:
            assert np.argmax(logits, axis=1).tolist() == text.tokens[:-1].tolist()
        assert np.isfinite(text.hidden).all()
    assert any(texts[n, 0].tokens.tolist() != texts[n, 1].tokens.tolist() for n in range(9))


def test_an_interrupted_run_continues(
    target: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    record(target, PROMPTS, tmp_path / "whole", WRITING)
    monkeypatch.setattr("emsjax.train.record.TEXTS_PER_FILE", 3)
    seen = []

    def killed(text: Text) -> None:
        seen.append(text)
        if len(seen) == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record(target, PROMPTS, tmp_path / "cut", WRITING, killed)
    (tmp_path / "cut" / "000099.partial").write_bytes(b"half a file")
    kept = len(by_key(tmp_path / "cut"))
    assert 0 < kept < 8
    seen.clear()
    record(target, PROMPTS, tmp_path / "cut", WRITING, seen.append)
    whole, cut = by_key(tmp_path / "whole"), by_key(tmp_path / "cut")
    assert len(seen) == len(whole) - kept, "no text is written again"
    assert whole.keys() == cut.keys()
    for key, text in whole.items():
        assert text.tokens.tolist() == cut[key].tokens.tolist()
