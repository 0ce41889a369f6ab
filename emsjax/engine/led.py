"""An engine on devices of several hosts, of which one leads.

Programs on devices of several hosts run only if every host starts them, in the same order and with
the same arguments. The leader decides everything, with all that depends on time, on users or on
files, and tells the others to make the same calls of their engines.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, Literal, NamedTuple, Protocol, cast

import jax
import numpy as np

from emsjax.engine.array_digest import array_digest
from emsjax.engine.engine import Engine
from emsjax.engine.grammar_table import Places
from emsjax.engine.job import Job
from emsjax.engine.state import DecodeState
from emsjax.engine.step_costs import StepCosts
from emsjax.errors import UserError
from emsjax.sampling.automaton import Automaton, Vocabulary
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
        """Has the devices watched, which may wait for those of another host forever."""

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


class _Call(NamedTuple):
    """How every host makes a call of its engine.

    Attributes:
      takes_state: whether the state is its first argument.
      state: what is held afterwards: the state as it was, the call's result, or none.
      runs_devices: whether it may wait for devices of another host.
      settles: whether hosts wait for the result, and compare it if they check each other.
    """

    takes_state: bool = False
    state: Literal["same", "result", "none"] = "same"
    runs_devices: bool = False
    settles: bool = False


# All calls that change a state, or that other hosts make for another reason.
_CALLS = {
    "take_state": _Call(state="result"),
    "keep_state": _Call(takes_state=True, state="none"),
    "forget": _Call(),
    "use_costs": _Call(),
    "use_token_classes": _Call(),
    "ready_for": _Call(takes_state=True),  # so that all hosts compile at the same time
    "admit": _Call(takes_state=True, state="result", runs_devices=True),
    "advance": _Call(takes_state=True, state="result", runs_devices=True, settles=True),
    "release": _Call(takes_state=True, state="result"),
    "score": _Call(runs_devices=True),
}


def _make(name: str, method: Callable[..., Any], hosts: Hosts, *given: Any) -> Any:
    """Makes a call with the same effect on every host, and returns its result."""
    call = _CALLS[name]
    with hosts.devices_run() if call.runs_devices else nullcontext():
        result = method(*given)
        if call.settles:
            jax.block_until_ready(result)
    if call.settles and hosts.checks:
        hosts.agree(digest_of(result), _OTHERWISE)
    return result


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

    def _lead(self, name: str, *given: Any, sent: tuple[Any, ...] | None = None) -> Any:
        """Makes a call on all hosts.

        Args:
          name: one of `_CALLS`.
          given: its arguments.
          sent: what the others are told instead of them, without the state.
        """
        call = _CALLS[name]
        if call.takes_state:
            self._check(given[0])
        self._hosts.say(name, *(given[call.takes_state :] if sent is None else sent))
        result = _make(name, getattr(super(), name), self._hosts, *given)
        if call.state != "same":
            self._cache = result.cache if call.state == "result" else None
        return result

    def take_state(self) -> DecodeState:
        """See `Engine.take_state`."""
        return cast("DecodeState", self._lead("take_state"))

    def keep_state(self, state: DecodeState) -> None:
        """See `Engine.keep_state`."""
        self._lead("keep_state", state)

    def forget(self) -> None:
        """See `Engine.forget`."""
        self._lead("forget")

    def advance(self, state: DecodeState, max_steps: int, others_wait: bool) -> DecodeState:
        """See `Engine.advance`. Returns when the devices are done."""
        self._check(state)
        self._tell_changes()
        if made := self._made_here(state):
            self._hosts.say("use_arrays", made)
            state = _with_arrays(state, made)
        return cast("DecodeState", self._lead("advance", state, max_steps, others_wait))

    def ready_for(self, state: DecodeState, job: Job) -> bool:
        """See `Engine.ready_for`."""
        kind = (job.choice.greedy, job.grammar is None, job.scores_prompt)
        if kind in self._prepared:
            self._check(state)
            return super().ready_for(state, job)
        self._prepared.add(kind)
        self._tell_changes(job)
        return bool(self._lead("ready_for", state, job, sent=(_sent(job),)))

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
        self._tell_changes(job)
        sent, place = _sent(job), None
        if job.grammar is not None and sent.grammar is not None:
            assert places is not None
            place = places.of(job.grammar, sent.grammar)
        given = state, slot, job, source, shared, places
        # In one message, in which the place's grammar is still that of the job.
        found = self._lead("admit", *given, sent=(slot, sent, source, shared, place))
        return cast("DecodeState", found)

    def score(self, prompt: Sequence[int]) -> Logprobs:
        """See `Engine.score`."""
        return cast("Logprobs", self._lead("score", tuple(prompt)))

    def release(self, state: DecodeState, slot: int) -> DecodeState:
        """See `Engine.release`."""
        return cast("DecodeState", self._lead("release", state, slot))

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
    for name, *given in hosts.messages():
        follower.make(name, *given)


class _Follower:
    """An engine that does what the leader's does, and what it needs of the messages before."""

    def __init__(self, engine: Engine, hosts: Hosts):
        self._engine, self._hosts = engine, hosts
        self._state: DecodeState | None = None
        self._vocabulary = _NO_VOCABULARY

    def make(self, name: str, *given: Any) -> None:
        """Does what a message says."""
        if name == "use_vocabulary":
            (self._vocabulary,) = given
        elif name == "use_arrays":
            self._state = _with_arrays(self._held, *given)
        else:
            self._call(name, *self._whole(*given))

    def _call(self, name: str, *given: Any) -> None:
        call = _CALLS[name]
        if name == "take_state":
            self._state = None  # one that a failed run has left behind
        state = (self._held,) if call.takes_state else ()
        result = _make(name, getattr(self._engine, name), self._hosts, *state, *given)
        if call.state != "same":
            self._state = result if call.state == "result" else None

    @property
    def _held(self) -> DecodeState:
        assert self._state is not None
        return self._state

    def _whole(self, *given: Any) -> Iterator[Any]:
        """Yields arguments in which a job, and the place of its grammar, have the vocabulary."""
        grammar: Automaton | None = None
        whole: Automaton | None = None
        for each in given:
            if isinstance(each, Job):
                job = _with_vocabulary(each, self._vocabulary)
                grammar, whole = each.grammar, job.grammar
                yield job
            elif isinstance(each, Places) and grammar is not None and whole is not None:
                yield each.of(grammar, whole)
            else:
                yield each


def digest_of(state: DecodeState) -> str:
    """Returns a short digest of all that devices have the same: texts, lengths and figures."""
    leaves = jax.tree.leaves(state.replace(cache=()))
    return array_digest(leaf for leaf in leaves if leaf.is_fully_replicated)


def _with_arrays(state: DecodeState, made: dict[int, np.ndarray]) -> DecodeState:
    """Returns a state in which arrays from the host have their places, by their number."""
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
