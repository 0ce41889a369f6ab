"""The device's side of a run: the compiled programs over one state, for jobs in B slots."""

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import fields
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from emsjax.engine.admission import Request, admit_request
from emsjax.engine.beside import Beside
from emsjax.engine.devices import CACHE, ONE, SAME, Devices
from emsjax.engine.drafter import Drafter, observer, places_of
from emsjax.engine.grammar_table import GrammarTable, Places, empty_tables, table_size
from emsjax.engine.holes import no_holes
from emsjax.engine.job import Finished, Job
from emsjax.engine.ladder import Rung
from emsjax.engine.loop import Setup, run
from emsjax.engine.lowering import lower
from emsjax.engine.model import Model
from emsjax.engine.policy import EMS, Policy
from emsjax.engine.scoring import Scorer
from emsjax.engine.slots import Slots
from emsjax.engine.state import DecodeState, copy_prefix, empty_state
from emsjax.engine.step_costs import StepCosts
from emsjax.engine.stream import decode_stream
from emsjax.engine.trace_record import no_drafts
from emsjax.sampling.automaton import Automaton
from emsjax.sampling.choose import Chosen, choose
from emsjax.sampling.logprobs import Logprobs
from emsjax.sampling.state import SamplingState, empty_sampling, with_tables


class Engine:
    """Decodes jobs in B slots of S tokens with one compiled loop.

    Programs that change the state donate it, so that the cache is updated in place, never copied.
    """

    def __init__(
        self,
        model: Model,
        drafter: Drafter,
        ladder: Sequence[Rung],
        *,
        num_slots: int,
        capacity: int,
        costs: StepCosts | None = None,
        policy: Policy = EMS,
        trace: bool = False,
        choose: Callable[..., Chosen] = choose,
        new_cache: Callable[[jax.ShapeDtypeStruct], jax.Array] = jnp.zeros_like,
        devices: Devices = ONE,
        compiler_options: dict[str, str] | None = None,
    ):
        """Prepares the programs; the first `run` compiles them and allocates the state.

        Args:
          model: the target, an nnx module.
          drafter: guesses tokens.
          ladder: the shapes that a step may take, see `make_ladder`.
          num_slots: B.
          capacity: S, tokens of a slot, prompt and output together.
          costs: the cost of a step on each rung; None to verify every draft token that fits,
            whatever it costs.
          policy: what to pad; other policies than the default exist for comparison.
          trace: whether to record what was drafted, so that results have a `trace`.
          choose: turns the target's logits into tokens, as `sampling.choose`; simulations replace
            it on one device.
          new_cache: makes an array of the K/V cache, of this shape and type. Its elements may be
            anything.
          devices: that share the model. If there are several, the model's weights must lie on them.
          compiler_options: of the decode programs.
        """
        self.num_slots, self.capacity = num_slots, capacity
        self.ladder = tuple(ladder)
        self._costs, self.policy, self.devices = costs, policy, devices
        self.trace, self._new_cache = trace, new_cache
        # Devices that share a model have their own part of the logits each.
        divided = devices.number > 1
        vocabulary = devices.vocabulary(model.vocab_size)
        self._choose = partial(choose, vocabulary=vocabulary) if divided else choose
        self._token_classes = np.zeros(model.vocab_size, np.uint8)
        self._graphdef, self.params = nnx.split(model)
        self.cache_spec = model.cache_spec(num_slots, capacity)
        self._drafter, self._dtype = drafter, model.dtype
        self._weights = devices.on_all(drafter.weights)
        # TPUs and newer GPUs would round float32 operands of a product to fewer bits.
        self.precision = "highest" if model.dtype == jnp.float32 else None
        self._prepare_programs(compiler_options)
        self._grammars = GrammarTable(devices)
        self._scorer = Scorer(
            self._merged,
            self.ladder[-1],
            capacity,
            self.precision,
            self._new_cache,
            devices,
            devices.specs_of(self.params),
            vocabulary,
        )
        self._idle: DecodeState | None = None
        # What only some jobs need, once it is being compiled beside a run.
        self._beside = Beside()

    def _prepare_programs(self, compiler_options: dict[str, str] | None) -> None:
        """Makes the programs over the state; each is compiled when it first runs."""
        devices, drafter = self.devices, self._drafter

        # The names of the two programs are shown while they compile, see `programs`.
        def decode(
            params: nnx.State,
            weights: Any,
            costs: StepCosts | None,
            state: DecodeState,
            max_steps: jax.Array,
            others_wait: jax.Array,
        ) -> DecodeState:
            with jax.default_matmul_precision(self.precision):
                return run(self.setup(params), weights, costs, state, max_steps, others_wait)

        def decode_sampled(*arguments: Any) -> DecodeState:
            return decode(*arguments)

        def admit_job(
            state: DecodeState, slot: jax.Array, source: jax.Array, *request: Any
        ) -> DecodeState:
            return admit_request(state, drafter, slot, source, Request(*request))

        held = devices.specs_of((self.params, self._weights))
        self._state_places = state = _STATE.replace(drafter=places_of(drafter))
        run_specs = (*held, SAME, state, SAME, SAME)
        program = devices.program
        how: dict[str, Any] = {"donate": (3,), "options": compiler_options}
        self._decode = program(decode, run_specs, state, **how)
        self._decode_sampled = program(decode_sampled, run_specs, state, **how)
        self._admit = program(admit_job, (state, *[SAME] * 9), state, donate=(0,))
        self._release = program(_release, (state, SAME), state, donate=(0,))
        self._copy_prefix = program(copy_prefix, (CACHE, SAME, SAME, SAME), CACHE, donate=(0,))
        self.empty = program(self._empty, (), state)
        self.around = program(self._around, (CACHE,), state, donate=(0,))
        self._make_sampling = program(self._empty_sampling, (SAME,), SAME)

    @property
    def costs(self) -> StepCosts | None:
        """The cost of a step on each rung; None to verify every draft token that fits."""
        return self._costs

    def use_costs(self, costs: StepCosts | None) -> None:
        """Replaces the costs by which later steps are planned.

        Only code that knows the costs of a step calls this: `costs.Pricing` before a run, the
        measurement that forces a rung, and `bench`. A change from costs to None or back compiles
        another program.

        Args:
          costs: for the engine's ladder; None to verify every draft token that fits.
        """
        if (costs is None) != (self._costs is None):
            self._beside.forget()
        self._costs = costs

    @property
    def token_classes(self) -> np.ndarray:
        """uint8[V], which tokens are blanks and line breaks, see `sampling.adapt`; 0 if unknown."""
        return self._token_classes

    def use_token_classes(self, token_classes: np.ndarray) -> None:
        """Replaces the classes by which `adapt_temperature` picks a temperature.

        Only `LLM` calls this, for the first request that needs them: the engine knows no text.

        Args:
          token_classes: uint8[V], see `sampling.adapt.classify`.
        """
        self._token_classes = np.asarray(token_classes, np.uint8)

    @property
    def drafter(self) -> Drafter:
        """The drafter."""
        return self._drafter

    def use_drafter(self, drafter: Drafter) -> None:
        """Drafts with other weights from the next step on.

        Only `bench` calls this, to time steps with simulated drafts.

        Args:
          drafter: of the same kind, with weights of the same shapes, so that the compiled programs
            stay valid.
        """
        self._drafter = drafter
        self._weights = self.devices.on_all(drafter.weights)

    def setup(self, params: nnx.State) -> Setup:
        """Returns the parts of the loop, with these weights."""
        return Setup(self._merged(params), self.drafter, self.ladder, self.policy, self._choose)

    def _merged(self, params: nnx.State) -> Any:
        return nnx.merge(self._graphdef, params)

    def lower(
        self,
        sharding: jax.sharding.Sharding | None = None,
        *,
        sampling: bool = False,
        grammar: Automaton | None = None,
    ) -> jax.stages.Lowered:
        """Lowers the decode program, to compile it and inspect the result.

        Args:
          sharding: the placement of the arguments. It may name a device that you do not have. None
            for the default device, or for the devices that share the model.
          sampling: lower the program for batches in which some slots do not take the likeliest
            token.
          grammar: lower the program for batches in which a slot has this or any other grammar.
        """
        scalar, flag = (jax.ShapeDtypeStruct((), t) for t in (jnp.int32, jnp.bool))
        state = self._abstract_state(sampling=sampling, grammar=grammar)
        others = (self.costs, state, scalar, flag)
        program = self._decode_sampled if sampling else self._decode
        weights, divided = (self.params, self._weights), self.devices.number > 1
        return lower(program, weights, others, sharding, divided=divided)

    def _abstract_state(self, *, sampling: bool, grammar: Automaton | None = None) -> DecodeState:
        """Returns the shapes of the state, and their places if devices share the model."""
        state = jax.eval_shape(self.empty)
        if sampling:
            state = state.replace(sampling=jax.eval_shape(self._make_sampling, self.token_classes))
        if grammar is not None:
            state = state.replace(
                sampling=jax.eval_shape(
                    lambda made: with_tables(made, empty_tables(grammar.vocabulary)), state.sampling
                )
            )
        return self.devices.abstract(state, self._state_places)

    def _empty(self) -> DecodeState:
        return self._around(jax.tree.map(self._new_cache, self.cache_spec))

    def _around(self, cache: Any) -> DecodeState:
        """Returns a state of idle slots around an existing cache, which may hold prompts."""
        drafter_state = self.drafter.init(self.num_slots, self.capacity)
        hidden = None
        if self.drafter.hidden_size:
            hidden = jnp.zeros((self.num_slots, self.drafter.hidden_size), self._dtype)
        holes = no_holes(self.num_slots, self.capacity) if self.policy.align_cache else None
        state = empty_state(cache, self.drafter.draft_length, drafter_state, hidden, holes)
        if self.trace:
            drafts = no_drafts(self.num_slots, self.drafter.draft_length, self.capacity)
            state = state.replace(drafts=drafts)
        return state

    def _empty_sampling(self, token_classes: jax.Array) -> SamplingState:
        return empty_sampling(self.num_slots, self.capacity, token_classes)

    def run(
        self, jobs: Iterable[Job | None], on_progress: Callable[[int], None] | None = None
    ) -> Generator[Finished | None, None, None]:
        """Decodes all jobs: takes a job whenever a slot is free, and one job ahead.

        If the first job that samples comes to a running batch, its programs are compiled in a
        thread. Until then it waits, and up to B jobs more are taken ahead, to run those that can.

        Args:
          jobs: taken one at a time. None means that no job is ready yet; the jobs in the slots
            continue meanwhile. If the iterable raises, earlier jobs are finished first.
          on_progress: called with the number of tokens generated since the last call.

        Yields:
          Each result when it is final, in the order in which the jobs finish; None after new tokens
          of a watched job.

        Raises:
          Exception: taking a job failed, a job's watch did, or the device.
        """
        yield from decode_stream(Slots(self, on_progress), jobs)

    @property
    def cache_is_text(self) -> bool:
        """Whether the K/V of a text's tokens lie one after another, as without an aligned cache."""
        return not self.policy.align_cache

    @property
    def read_again(self) -> int:
        """The last tokens of a beginning that two texts share which are read again."""
        return 0 if observer(self.drafter) is None else 1

    def take_state(self) -> DecodeState:
        """Returns a state without live slots. If it is not given back, the next one is new."""
        state = self._idle if self._idle is not None else self.empty()
        self._idle = None
        return state

    def keep_state(self, state: DecodeState) -> None:
        """Keeps a state without live slots, and its cache, for the next `take_state`."""
        # The next run may be greedy, and then does without the sampling state.
        self._idle = state.replace(sampling=None)

    def forget(self) -> None:
        """Releases the memory that is kept for the next run."""
        self._idle = None

    def advance(self, state: DecodeState, max_steps: int, others_wait: bool) -> DecodeState:
        """Steps until the host has something to do, see `loop.run`."""
        limits = np.int32(max_steps), np.bool(others_wait)
        program = self._decode if state.sampling is None else self._decode_sampled
        return program(self.params, self._weights, self.costs, state, *limits)

    def ready_for(self, state: DecodeState, job: Job) -> bool:
        """Returns whether a job can be admitted to a running batch at once.

        The first job that samples needs other programs, and so do the first with a grammar and the
        first whose prompt is scored. These take as long to compile as the ones that run, so a
        thread compiles them, while the slots continue with the ones they have.
        """
        ready = True
        if not (job.choice.greedy or _takes(state, job)):
            ready = self._beside.done(_program_of(job), partial(self._compile_sampled, job))
        if job.scores_prompt:
            ready &= self._beside.done("score", partial(self._scorer.compile, self.params))
        return ready

    def _compile_sampled(self, job: Job) -> None:
        """Compiles what `admit` and the steps after it run once a slot samples."""
        self._make_sampling.lower(self.token_classes).compile()
        state = self._abstract_state(sampling=True, grammar=job.grammar)
        slot = np.int32(0)
        request = Request.of(job, self.capacity, 0, slot)
        self._admit.lower(state, slot, slot, *request).compile()
        self._release.lower(state, slot).compile()
        if job.grammar is not None:
            assert state.sampling is not None
            self._grammars.compile(state.sampling, job.grammar)
        self.lower(sampling=True, grammar=job.grammar).compile()

    def admit(
        self,
        state: DecodeState,
        slot: int,
        job: Job,
        source: int | None,
        shared: int | None = None,
        places: Places | None = None,
    ) -> DecodeState:
        """Puts a job into a free slot.

        Args:
          state: the state of all slots.
          slot: the slot to fill.
          job: the job to decode there; `places` must have room for its grammar.
          source: a slot whose cache holds the beginning of the job's prompt, possibly the same
            slot; None to read the whole prompt.
          shared: the tokens of that beginning, at most all but the last; None for as many.
          places: of the state's grammars; needed only if the job has one.
        """
        if not job.choice.greedy:
            self._beside.wait(_program_of(job))
            state = self._with_sampling(state)
        row = None
        if job.grammar is not None:
            assert state.sampling is not None
            assert places is not None
            sampling, row = self._grammars.put(state.sampling, job.grammar, places)
            state = state.replace(sampling=sampling)
        cached = 0
        if source is not None:
            # The prompt's last token is computed again: the first token is chosen after its row.
            read = max(len(job.prompt) - 1 - self.read_again, 0)
            cached = read if shared is None else shared
            if source != slot and cached:
                span = map(np.int32, (source, slot, cached))
                state = state.replace(cache=self._copy_prefix(state.cache, *span))
        slots = np.int32(slot), np.int32(slot if source is None else source)
        return self._admit(state, *slots, *Request.of(job, self.capacity, cached, row))

    def score(self, prompt: Sequence[int]) -> Logprobs:
        """Returns the log-probabilities of a prompt's tokens, see `Scorer.score`."""
        self._beside.wait("score")
        return self._scorer.score(self.params, prompt)

    def release(self, state: DecodeState, slot: int) -> DecodeState:
        """Frees a slot before its job is done."""
        return self._release(state, np.int32(slot))

    def _with_sampling(self, state: DecodeState) -> DecodeState:
        """Returns the state with sampling parameters, which greedy runs do without."""
        sampling = state.sampling
        if sampling is None:
            return state.replace(sampling=self._make_sampling(self.token_classes))
        return state.replace(sampling=sampling.replace(token_classes=self.token_classes))

    def grammar_places(self) -> Places:
        """Returns the places of the grammars of a state that has none yet."""
        return Places(table_size(len(self.token_classes)))


# The place of the state on devices that share a model, but for the drafter's part.
_PLACES: dict[str, Any] = {field.name: SAME for field in fields(DecodeState)}
_STATE = DecodeState(**_PLACES | {"cache": CACHE})


def _release(state: DecodeState, slot: jax.Array) -> DecodeState:
    return state.replace(live=state.live.at[slot].set(False))


def _takes(state: DecodeState, job: Job) -> bool:
    """Returns whether the programs for a state can decode a job that samples."""
    sampling = state.sampling
    return sampling is not None and (job.grammar is None or sampling.grammars is not None)


def _program_of(job: Job) -> str:
    """Returns the name of the programs that a job needs which samples."""
    return "sampled" if job.grammar is None else "grammar"
