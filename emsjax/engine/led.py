"""An engine on devices of several hosts, of which one leads.

Programs on devices of several hosts run only if every host starts them, in the same order and with
the same arguments. The leader decides everything, with all that depends on time, on users or on
files, and tells the others to make the same calls of their engines.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, Protocol

import jax
import numpy as np

from emsjax.engine.engine import Engine
from emsjax.engine.grammar_table import Places
from emsjax.engine.job import Job
from emsjax.engine.state import DecodeState
from emsjax.engine.step_costs import StepCosts
from emsjax.errors import UserError
from emsjax.sampling.automaton import Vocabulary
from emsjax.sampling.logprobs import Logprobs

_OTHERWISE = (
    "has other texts in its slots than host 0 after the same steps; report this with both commands"
)
# Stands for that of a grammar which travels: a large one would take as long as a step.
_NO_VOCABULARY = Vocabulary([])


class Hosts(Protocol):
    """The other hosts, as `emsjax.cluster.hosts` provides them."""

    checks: bool

    def devices_run(self) -> AbstractContextManager[None]:
        """Has the devices watched, which may wait for those of another host for ever."""

    def agree(self, mine: str, otherwise: str) -> None:
        """Compares something with what the other hosts have; the leader raises an error."""


class Led(Hosts, Protocol):
    """The hosts, as the leader sees them."""

    def say(self, *message: object) -> None:
        """Tells all others something."""


class Leading(Hosts, Protocol):
    """The hosts, as one that follows sees them."""

    def messages(self) -> Iterator[tuple[Any, ...]]:
        """Yields what the leader says."""


class LeadingEngine(Engine):
    """The engine of the leader. It holds one state at a time, as the others do."""

    def __init__(self, *arguments: Any, hosts: Led, **options: Any):
        """See `Engine`.

        Args:
          arguments: of `Engine`.
          hosts: those that follow.
          options: of `Engine`.
        """
        super().__init__(*arguments, **options)
        self._hosts = hosts
        self._cache: Any = None
        self._prepared: set[tuple[bool, bool, bool]] = set()
        self._told_costs: StepCosts | None = None
        self._told_classes = self.token_classes
        self._told_vocabulary: Vocabulary | None = None

    def take_state(self) -> DecodeState:
        """See `Engine.take_state`."""
        self._hosts.say("take_state")
        return self._held(super().take_state())

    def keep_state(self, state: DecodeState) -> None:
        """See `Engine.keep_state`."""
        self._check(state)
        self._hosts.say("keep_state")
        super().keep_state(state)
        self._cache = None

    def forget(self) -> None:
        """See `Engine.forget`."""
        self._hosts.say("forget")
        super().forget()

    def advance(self, state: DecodeState, max_steps: int, others_wait: bool) -> DecodeState:
        """See `Engine.advance`. Returns when the devices are done."""
        self._check(state)
        self._tell_changes()
        made = self._made_here(state)
        state = _with_arrays(state, made)
        self._hosts.say("advance", made, max_steps, others_wait)
        with self._hosts.devices_run():
            state = jax.block_until_ready(super().advance(state, max_steps, others_wait))
        if self._hosts.checks:
            self._hosts.agree(digest_of(state), _OTHERWISE)
        return self._held(state)

    def ready_for(self, state: DecodeState, job: Job) -> bool:
        """See `Engine.ready_for`."""
        self._check(state)
        kind = (job.choice.greedy, job.grammar is None, job.scores_prompt)
        if kind not in self._prepared:
            # The others compile meanwhile, too.
            self._prepared.add(kind)
            self._tell_changes(job)
            self._hosts.say("ready_for", _sent(job))
        return super().ready_for(state, job)

    def admit(
        self,
        state: DecodeState,
        slot: int,
        job: Job,
        source: int | None,
        shared: int | None = None,
        places: Places | None = None,
    ) -> DecodeState:
        """See `Engine.admit`."""
        self._check(state)
        self._tell_changes(job)
        sent, place = _sent(job), None
        if job.grammar is not None and sent.grammar is not None:
            assert places is not None
            place = places.of(job.grammar, sent.grammar)
        # In one message, in which the place's grammar is still that of the job.
        self._hosts.say("admit", slot, sent, source, shared, place)
        with self._hosts.devices_run():
            return self._held(super().admit(state, slot, job, source, shared, places))

    def score(self, prompt: Sequence[int]) -> Logprobs:
        """See `Engine.score`."""
        self._hosts.say("score", tuple(prompt))
        with self._hosts.devices_run():
            return super().score(prompt)

    def release(self, state: DecodeState, slot: int) -> DecodeState:
        """See `Engine.release`."""
        self._check(state)
        self._hosts.say("release", slot)
        return self._held(super().release(state, slot))

    def _held(self, state: DecodeState) -> DecodeState:
        self._cache = state.cache
        return state

    def _check(self, state: DecodeState) -> None:
        if state.cache is not self._cache:
            raise UserError("a model on several hosts has one run at a time; end the other first")

    def _tell_changes(self, job: Job | None = None) -> None:
        if self.costs is not self._told_costs:
            self._told_costs = self.costs
            self._hosts.say("use_costs", jax.tree.map(np.asarray, self.costs))
            self._prepared.clear()
        if self.token_classes is not self._told_classes:
            self._told_classes = self.token_classes
            self._hosts.say("use_token_classes", self.token_classes)
        if job is not None and job.grammar is not None:
            vocabulary = job.grammar.vocabulary
            if vocabulary is not self._told_vocabulary:
                self._told_vocabulary = vocabulary
                self._hosts.say("use_vocabulary", vocabulary)

    def _made_here(self, state: DecodeState) -> dict[int, np.ndarray]:
        """The arrays of a state, by their number, that the host has made and not a program."""
        leaves = enumerate(jax.tree.leaves(state))
        return {n: np.asarray(leaf) for n, leaf in leaves if not self.devices.is_there(leaf)}


def follow(engine: Engine, hosts: Leading) -> None:
    """Makes the calls that the leader makes, until it has no more.

    Raises:
      UserError: the leader is gone, or has ended because of an error.
    """
    follower = _Follower(engine, hosts)
    for name, *arguments in hosts.messages():
        getattr(follower, name)(*arguments)


class _Follower:
    """An engine that does what the leader's does; each method is that of `LeadingEngine`."""

    def __init__(self, engine: Engine, hosts: Hosts):
        self._engine, self._hosts = engine, hosts
        self._state: DecodeState | None = None
        self._vocabulary = _NO_VOCABULARY
        self.forget = engine.forget
        self.use_token_classes = engine.use_token_classes
        self.use_costs = engine.use_costs

    @property
    def _held(self) -> DecodeState:
        assert self._state is not None
        return self._state

    def take_state(self) -> None:
        self._state = None  # one that a failed run has left behind
        self._state = self._engine.take_state()

    def keep_state(self) -> None:
        self._engine.keep_state(self._held)
        self._state = None

    def advance(self, made: dict[int, np.ndarray], max_steps: int, others_wait: bool) -> None:
        state = _with_arrays(self._held, made)
        with self._hosts.devices_run():
            state = self._engine.advance(state, max_steps, others_wait)
            self._state = jax.block_until_ready(state)
        if self._hosts.checks:
            self._hosts.agree(digest_of(self._held), _OTHERWISE)

    def use_vocabulary(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary

    def ready_for(self, job: Job) -> None:
        self._engine.ready_for(self._held, _with_vocabulary(job, self._vocabulary))

    def admit(
        self, slot: int, job: Job, source: int | None, shared: int | None, place: Places | None
    ) -> None:
        whole = _with_vocabulary(job, self._vocabulary)
        if place is not None and job.grammar is not None and whole.grammar is not None:
            place = place.of(job.grammar, whole.grammar)
        with self._hosts.devices_run():
            self._state = self._engine.admit(self._held, slot, whole, source, shared, place)

    def score(self, prompt: Sequence[int]) -> None:
        with self._hosts.devices_run():
            self._engine.score(prompt)

    def release(self, slot: int) -> None:
        self._state = self._engine.release(self._held, slot)


def digest_of(state: DecodeState) -> str:
    """Returns a short digest of all that devices have the same: texts, lengths and figures."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(state.replace(cache=())):
        if leaf.is_fully_replicated:
            digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()[:16]


def _with_arrays(state: DecodeState, made: dict[int, np.ndarray]) -> DecodeState:
    """Returns a state in which arrays from the host have their places, by their number."""
    if not made:
        return state
    leaves, tree = jax.tree.flatten(state)
    places = [made.get(n, leaf) for n, leaf in enumerate(leaves)]
    changed: DecodeState = jax.tree.unflatten(tree, places)
    return changed


def _sent(job: Job) -> Job:
    """Returns what another host needs of a job, which is told of the vocabulary once."""
    needed = replace(job, key=None, group=None, watch=None, watch_logprobs=None)
    return _with_vocabulary(needed, _NO_VOCABULARY)


def _with_vocabulary(job: Job, vocabulary: Vocabulary) -> Job:
    """Returns a job whose grammar, if it has one, is for another vocabulary."""
    if job.grammar is None:
        return job
    return replace(job, grammar=replace(job.grammar, vocabulary=vocabulary))
