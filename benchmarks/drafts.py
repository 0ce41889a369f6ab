"""Records what a model that drafts would draft at every place of real texts.

python -m benchmarks.drafts --input prompts.jsonl --output drafts.npz

The default model writes its answers token by token. Before each token, its draft drafts as a chain
and as a tree, and nothing is verified. So the file says what any planner would have had to choose
from, and the text says which guesses were right.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import chat, read_prompts, say
from benchmarks.logged import LoggedEngine
from emsjax.drafters.beam import CHOICES, WIDEST
from emsjax.drafters.prompt_lookup import MOST_MATCHES, PromptLookup
from emsjax.drafters.recurrent import Recurrent
from emsjax.engine.draft import Draft
from emsjax.engine.drafter import Drafter, Memoryless, WorthDrafting
from emsjax.engine.ladder import make_ladder
from emsjax.engine.state import DecodeState
from emsjax.engine.tree import MOST_GUESSES

# The most guesses on a path.
DEPTH = 7
FIELDS = ("tokens", "confidence", "source", "parents")


class Recorded(NamedTuple):
    """Texts, and what was drafted at each of P places of N outputs.

    Attributes:
      texts: int32[N, S], prompts and outputs.
      prompt_lens: int32[N].
      lens: int32[N], tokens of prompt and output together.
      categories: str[N], of the prompts.
      drafts: by "chain", "tree" and "lookup", the fields of `Draft` as arrays
        [N, P, k], and `lens` [N, P]. At place p, p tokens of the output are known. There is no
        draft at place 0.
    """

    texts: np.ndarray
    prompt_lens: np.ndarray
    lens: np.ndarray
    categories: np.ndarray
    drafts: dict[str, dict[str, np.ndarray]]

    def right(self, name: str) -> np.ndarray:
        """Which guesses the text confirms, with all before them on their path, bool[N, P, k]."""
        tokens, parents = self.drafts[name]["tokens"], self._parents(name)
        depth, there, right = self.depths(name), self.there(name), np.zeros(parents.shape, bool)
        sample = np.arange(len(self.texts))[:, None]
        place = self.prompt_lens[:, None] + np.arange(parents.shape[1])
        for guess in range(parents.shape[2]):
            at = place + depth[..., guess]
            true = self.texts[sample, np.minimum(at, self.texts.shape[1] - 1)]
            hit = (at < self.lens[:, None]) & (true == tokens[..., guess]) & there[..., guess]
            right[..., guess] = hit & _of(right, parents[..., guess], True)
        return right

    def tried(self, name: str) -> np.ndarray:
        """Which guesses follow a path that the text confirms, bool[N, P, k]."""
        parents, right = self._parents(name), self.right(name)
        above = np.take_along_axis(right, np.maximum(parents, 0), axis=2)
        return self.there(name) & np.where(parents < 0, True, above)

    def depths(self, name: str) -> np.ndarray:
        """How many guesses are before each on its path, int[N, P, k]."""
        parents = self._parents(name)
        depth = np.zeros(parents.shape, int)
        for guess in range(parents.shape[2]):
            depth[..., guess] = _of(depth, parents[..., guess], -1) + 1
        return depth

    def ranks(self, name: str) -> np.ndarray:
        """How many guesses that follow the same token are likelier, int[N, P, k]."""
        parents, said = self._parents(name), self.drafts[name]["confidence"]
        rank, there = np.zeros(parents.shape, int), self.there(name)
        for guess in range(parents.shape[2]):
            siblings = (parents == parents[..., guess, None]) & there
            rank[..., guess] = (siblings & (said > said[..., guess, None])).sum(axis=2)
        return rank

    def _parents(self, name: str) -> np.ndarray:
        return self.drafts[name]["parents"].astype(int)

    def there(self, name: str) -> np.ndarray:
        """Which entries are guesses, bool[N, P, k]."""
        draft = self.drafts[name]
        return np.arange(draft["tokens"].shape[2]) < draft["lens"][..., None]


def _of(values: np.ndarray, parents: np.ndarray, root: Any) -> np.ndarray:
    """Returns what belongs to the parents [N, P], from values [N, P, k] of all guesses."""
    found = np.take_along_axis(values, np.maximum(parents, 0)[..., None], axis=2)[..., 0]
    return np.where(parents < 0, root, found)


def read(file: Path) -> Recorded:
    """Reads a file that this program wrote."""
    with np.load(file) as arrays:
        drafts: dict[str, dict[str, np.ndarray]] = {}
        for name in arrays.files:
            if "/" in name:
                kind, part = name.split("/")
                drafts.setdefault(kind, {})[part] = arrays[name]
        plain = (arrays[name] for name in Recorded._fields[:-1])
        return Recorded(*plain, drafts)


def write(recorded: Recorded, file: Path) -> None:
    """Writes a file for `read`."""
    drafts = {f"{n}/{f}": x for n, of in recorded.drafts.items() for f, x in of.items()}
    plain = {name: getattr(recorded, name) for name in Recorded._fields[:-1]}
    np.savez_compressed(file, **plain, **drafts)


@dataclass(frozen=True)
class _Watched(Memoryless):
    """Drafts in every way, offers nothing, and keeps the drafts in its state."""

    ways: dict[str, Drafter]
    draft_length: int = DEPTH

    @property
    def _any(self) -> Drafter:
        return next(iter(self.ways.values()))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._any, name)

    def init(self, num_slots: int, capacity: int) -> Any:
        del capacity

        def nothing(length: int) -> Draft:
            ints = jnp.zeros((num_slots, length), jnp.int32)
            floats, lens = jnp.zeros(ints.shape, jnp.float32), jnp.zeros(num_slots, jnp.int32)
            return Draft(ints, lens, floats, ints, ints)

        return {name: nothing(way.draft_length) for name, way in self.ways.items()}

    def propose(self, state: DecodeState, weights: Any, worth: WorthDrafting) -> tuple[Draft, Any]:
        del worth
        made, cache = {}, None
        for name, way in self.ways.items():
            draft, _ = way.propose(state, weights, lambda *_: jnp.int32(DEPTH))
            cache = cache if draft.cache is None else draft.cache
            if draft.parents is None:
                places = jnp.arange(draft.tokens.shape[1], dtype=jnp.int32)
                draft = draft._replace(parents=jnp.broadcast_to(places - 1, draft.tokens.shape))
            made[name] = draft._replace(cache=None)
        slots = state.lens.shape[0]
        nothing = jnp.zeros((slots, DEPTH), jnp.int32)
        return Draft(nothing, jnp.zeros(slots, jnp.int32), cache=cache), made


def _ways(model: Any) -> dict[str, Drafter]:
    """Returns the ways of drafting; only a recurrent draft branches."""
    lookup = PromptLookup(DEPTH, matches=MOST_MATCHES)
    if not isinstance(model, Recurrent):
        return {"chain": model, "lookup": lookup}
    tree = replace(model, draft_length=MOST_GUESSES, beam_rows=WIDEST * CHOICES * 4096)
    chain = replace(model, draft_length=DEPTH, beam_rows=1)
    return {"chain": chain, "tree": tree, "lookup": lookup}


def _name_of(tokens: Any, lens: Any) -> jax.Array:
    """Returns a number for each prompt, uint32[B], from tokens [B, S] and lengths [B]."""
    places = jnp.arange(tokens.shape[1], dtype=jnp.uint32)[None]
    mixed = (tokens.astype(jnp.uint32) + 1) * (places + 1) * jnp.uint32(2654435761)
    mixed ^= mixed >> 15
    return jnp.where(places < lens[:, None].astype(jnp.uint32), mixed, 0).sum(
        axis=1, dtype=jnp.uint32
    )


def _note(before: DecodeState, after: DecodeState) -> Any:
    emitted = before.live & (after.lens > before.lens)
    place = jnp.where(emitted, before.lens - before.prompt_lens, -1)
    return _name_of(before.tokens, before.prompt_lens), place, after.drafter


def main() -> None:
    """Records and writes the file."""
    options = _options()
    from emsjax import LLM, SamplingParams

    given = {} if options.draft_model is None else {"draft_model": options.draft_model}
    llm = LLM(
        drafter="draft-model",
        planner=False,
        max_batch_size=options.batch_size,
        max_model_len=options.max_model_len,
        **given,
    )
    engine = llm.engine
    log = llm.engine = LoggedEngine(
        llm.target,
        _Watched(_ways(engine.drafter)),
        make_ladder(options.batch_size, draft_length=0, narrowest=4),
        note=_note,
        num_slots=options.batch_size,
        capacity=engine.capacity,
    )
    prompts = read_prompts(options.input)
    prompts = prompts[:: max(len(prompts) // options.prompts, 1)][: options.prompts]
    params = SamplingParams(max_tokens=options.max_tokens, temperature=options.temperature)
    outputs = llm.chat([chat(prompt.text) for prompt in prompts], params)
    recorded = _gathered(outputs, [p.category for p in prompts], log.take_log())
    say(f"{len(outputs)} texts, {int((recorded.lens - recorded.prompt_lens).sum())} tokens")
    write(recorded, options.output)


def _gathered(outputs: Sequence[Any], categories: Sequence[str], log: Any) -> Recorded:
    """Sorts what was noted of the steps, [steps, B], by text and place."""
    wholes = [[*o.prompt_token_ids, *o.outputs[0].token_ids] for o in outputs]
    prompt_lens = np.asarray([len(o.prompt_token_ids) for o in outputs], np.int32)
    lens = np.asarray([len(whole) for whole in wholes], np.int32)
    texts = np.zeros((len(wholes), max(lens)), np.int32)
    for text, whole in zip(texts, wholes, strict=True):
        text[: len(whole)] = whole
    names = np.asarray(_name_of(jnp.asarray(texts), jnp.asarray(prompt_lens)))
    if len(set(names.tolist())) < len(names):
        raise SystemExit("two prompts are the same; leave one out")
    found, place, made = log
    emitted = place > 0
    order = np.argsort(names)
    sample = order[np.searchsorted(names[order], found[emitted])]
    places = int((lens - prompt_lens).max())
    drafts: dict[str, dict[str, np.ndarray]] = {}
    for name, draft in made.items():
        drafts[name] = {}
        for field in (*FIELDS, "lens"):
            noted = getattr(draft, field)
            by_place = np.zeros((len(texts), places, *noted.shape[2:]), noted.dtype)
            by_place[sample, place[emitted]] = noted[emitted]
            small = field in ("source", "parents", "lens")
            drafts[name][field] = by_place.astype(np.int8) if small else by_place
    return Recorded(texts, prompt_lens, lens, np.asarray(categories), drafts)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--input", type=Path, required=True, help="prompts in Spec-Bench's format")
    parser.add_argument("--prompts", type=int, default=48, help="evenly from all categories")
    parser.add_argument("--draft-model", help="the default model's own unless given")
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--max-model-len", type=int, default=2048)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--output", type=Path, default=Path("drafts.npz"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
