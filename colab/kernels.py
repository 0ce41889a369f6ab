# ---
# jupyter:
#   accelerator: TPU
#   colab:
#     gpuType: V5E1
#   jupytext:
#     formats: ipynb,py:percent
#     notebook_metadata_filter: accelerator,colab
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # emsjax: the kernels explained
#
# This notebook shows what a step of batched speculative decoding computes, and where its keys and
# values are: packing, ragged lengths, two layouts of the cache, one token in memory, and the
# attention kernel. Every picture is drawn from the state of a real run in this notebook. It needs
# no accelerator.
#
# In Colab, first upload the wheel `emsjax-….whl` with the folder icon at the left. In a clone of
# the repository there is nothing to upload.

# %%
# Setup, the same in all notebooks: install emsjax for the device that this runtime has.
import os
import shlex
import subprocess
import sys
from glob import glob
from pathlib import Path

SOURCE = ""  # A wheel's address, or git+https://…, if neither a wheel nor a clone is here.
PINS = "jax==0.10.2 flax==0.12.8 transformers==5.24.0"  # This release was tested with them.
# The project's own tests set this variable: settings are then small, and nothing is installed.
SMALL = "EMSJAX_NOTEBOOK_TEST" in os.environ


def run(command: str) -> str:
    """Runs a command like a terminal, except that an error ends the cell; returns its output."""
    print("$", command)
    lines = []
    words = [sys.executable if word == "python" else word for word in shlex.split(command)]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(words, **options) as process:
        try:
            for line in process.stdout:
                print(line, end="")
                lines.append(line)
        except KeyboardInterrupt:  # the command got it too: wait, so that it frees the device
            print(process.communicate()[0], end="")
            raise
    if process.returncode:
        raise RuntimeError(f"the command ended with exit status {process.returncode}")
    return "".join(lines)


if not SMALL:
    source = SOURCE or Path(max(glob("emsjax-*-any.whl"), default="..")).resolve().as_uri()
    if not (SOURCE or source.endswith(".whl") or Path("../pyproject.toml").is_file()):
        sys.exit("Set SOURCE, or upload the wheel, emsjax-….whl, and run this cell again.")
    tpu = glob("/dev/accel*") + glob("/dev/vfio/[0-9]*")
    device = ",cuda" if glob("/dev/nvidia[0-9]*") else ",tpu" if tpu else ""
    run(f"python -m pip install --quiet 'emsjax[train{device}] @ {source}' {PINS}")
# In a separate process: a TPU belongs to one process at a time, and the commands below need it.
output = run("python -c 'from emsjax.host.device import device_name; print(device_name())'")
PLATFORM = output.splitlines()[-1].split()[0]  # "tpu", "gpu" or "cpu"
if not SMALL and device and PLATFORM == "cpu":
    sys.exit("jax cannot use the accelerator of this runtime: restart the runtime and try again.")

# %% [markdown]
# ## A real run, step by step
#
# There are four prompts of different lengths, with prompt lookup: each sample drafts what followed
# its last tokens earlier in its own text. The loop runs one step at a time. Before each step, the
# functions that make up the loop compute what it is about to do; after it, we read its state. Then
# the same runs with the padded method, `vanilla`, which other implementations use.

# %%
from typing import NamedTuple

import jax
import matplotlib.pyplot as plt
import numpy as np

from emsjax.drafters import PromptLookup
from emsjax.engine.engine import Engine
from emsjax.engine.job import Job
from emsjax.engine.ladder import Rung
from emsjax.engine.loop import draft_tokens, plan_rows
from emsjax.engine.packing import Guesses, pack
from emsjax.engine.policy import POLICIES
from emsjax.host.cache import use_compile_cache
from emsjax.loading.families import model_config
from emsjax.loading.load import load_model

TEXTS = [
    "Monday, Tuesday, Wednesday, Thursday, Friday, Monday, Tuesday,",
    "The cat sat on the mat. The dog sat on the rug. The cat sat on",
    "x = 1\ny = 2\nprint(x)\nprint(y)\nx = 3\ny = 4\nprint(",
    "The sea is",
]
STEPS = 8 if SMALL else 16
# Capacity of the buffer and the most rows of one slot, for plain steps, drafts and prompts.
LADDER = (Rung(4, 1), Rung(8, 8), Rung(16, 8), Rung(32, 8), Rung(128, 128))
use_compile_cache()
loaded = load_model(None)
prompts = [loaded.tokenizer.encode(text) for text in TEXTS]


# %%
class Step(NamedTuple):
    """One step: its plan, its packed rows, and the state after it; numpy arrays."""

    q_lens: np.ndarray  # rows of each slot
    draft_lens: np.ndarray  # how many of them are draft tokens
    batch: tuple  # emsjax.engine.packing.PackedBatch
    emitted: np.ndarray  # tokens that each slot gained
    kv_lens: np.ndarray  # tokens of each slot in the cache


def planner_of(engine: Engine):
    """Returns a function from a state to the engine's next plan and its draft tokens."""

    @jax.jit
    def planned(params, state):
        setup = engine.setup(params)
        state, draft = draft_tokens(setup, (), state)
        return plan_rows(setup, state, draft).plan, draft.tokens

    return planned


# %%
def watch(method: str):
    """Returns the steps of a method and the state after them."""
    sizes = {"num_slots": len(prompts), "capacity": 256}
    drafter = PromptLookup(draft_length=7)
    engine = Engine(loaded.model, drafter, LADDER, policy=POLICIES[method], **sizes)
    planned, state, steps = planner_of(engine), engine.empty(), []
    for slot, prompt in enumerate(prompts):
        state = engine.admit(state, slot, Job(slot, prompt, max_tokens=128), None)
    for _ in range(STEPS):
        plan, drafted = planned(engine.params, state)
        capacity, guesses = LADDER[int(plan.rung)].capacity, Guesses(drafted, state.lens)
        batch = pack(state.tokens, state.kv_lens, plan.q_lens, capacity, guesses)
        before = np.array(state.lens)
        state = engine.advance(state, 1, others_wait=False)
        emitted = state.lens - before
        seen = Step(plan.q_lens, plan.draft_lens, batch, emitted, state.kv_lens)
        steps.append(jax.device_get(seen))
    return steps, state


packed, state = watch("ems")
padded, aligned_state = watch("vanilla")
for slot, tokens in enumerate(np.array(state.tokens)):
    print(repr(loaded.tokenizer.decode(tokens[: state.lens[slot]])))

# %% [markdown]
# ## Packing
#
# A step computes one row for each sample's newest token, whose keys and values are not in the cache
# yet, and one row for each draft token. The padded method computes as many rows for every sample as
# the longest draft needs. Packed, the rows of all samples follow each other without gaps. Only the
# shape of the compiled buffer, one of a short ladder, is rounded up. The picture shows the step
# that saves the most rows compared with the padded method.

# %%
COLOURS = ["#3b6fd4", "#d9822b", "#3a9d5d", "#a552c4"]
saved = [a.q_lens.sum() - b.q_lens.sum() for a, b in zip(padded, packed, strict=True)]
NUMBER = 1 + int(np.argmax(saved[1:]))  # step 0 reads the prompts


def draw_rows(axes, step: Step, places) -> None:
    """Draws a cell for each row of a step, at places[row] = (x, y)."""
    starts = step.batch.cu_q_lens
    for row, (token, slot) in enumerate(zip(step.batch.tokens, step.batch.slot_ids, strict=True)):
        x, y = places[row]
        place = row - starts[slot] if slot < len(prompts) else 0
        if slot == len(prompts):
            look, text = {"facecolor": "white", "edgecolor": "#bbbbbb", "linestyle": ":"}, ""
        elif place > step.draft_lens[slot]:
            look, text = {"facecolor": "#eeeeee", "edgecolor": "#999999", "hatch": "////"}, ""
        else:
            solid, kept = place == 0, place < step.emitted[slot]
            face = COLOURS[slot] if solid else COLOURS[slot] + "44" if kept else "white"
            look = {
                "facecolor": face,
                "edgecolor": COLOURS[slot],
                "linestyle": "-" if kept else "--",
            }
            text = repr(loaded.tokenizer.decode([token]))[1:-1].replace(" ", "␣")
            text = text if len(text) < 10 else text[:8] + "…"
        axes.add_patch(plt.Rectangle((x + 0.04, y + 0.04), 0.92, 0.92, **look))
        colour = "white" if look["facecolor"] in COLOURS else "black"
        axes.text(x + 0.5, y + 0.5, text, ha="center", va="center", fontsize=7, color=colour)


def flowing(count: int, width: int) -> list[tuple[int, int]]:
    """Returns the places of a buffer's rows on lines of `width`, from the top."""
    return [(row % width, row // width) for row in range(count)]


# %%
step, step_padded = packed[NUMBER], padded[NUMBER]
width = int(step_padded.q_lens.max())
pictures = [
    (step_padded, width, "padded"),
    (step, width, "packed"),
]
figure, both = plt.subplots(1, 2, figsize=(11, 2.9), layout="constrained")
for axes, (each, columns, title) in zip(both, pictures, strict=True):
    places = flowing(len(each.batch.tokens), columns)
    draw_rows(axes, each, places)
    lines = max(y for _, y in places) + 1
    axes.set(xlim=(0, columns), ylim=(max(lines, 4), 0))
    count, capacity = each.q_lens.sum(), len(each.batch.tokens)
    axes.set_title(f"{title}: {count} rows in a buffer of {capacity}")
    axes.axis("off")
figure.supxlabel(
    "solid: newest token · light: draft, accepted · dashed: draft, rejected · "
    "hatched: padding · dotted: room that no row uses\n"
    "read the buffer line by line; each colour is a sample",
    fontsize=9,
)
plt.show()
print("slot_ids ", step.batch.slot_ids)
print("positions", step.batch.positions)
print("cu_q_lens", step.batch.cu_q_lens, " where each slot's rows start")

# %% [markdown]
# ## Ragged lengths
#
# Samples accept different numbers of tokens, so their lengths drift apart. The attention kernel
# gets `cu_q_lens` (which rows belong to which slot) and `kv_lens` (how much of each slot's cache is
# valid). Each row attends to its own sample's tokens up to itself, and nothing else is read.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.6), layout="constrained")
for slot, colour in enumerate(COLOURS):
    left.plot(
        [each.kv_lens[slot] for each in packed], marker=".", color=colour, label=f"slot {slot}"
    )
left.set(xlabel="step (0 reads the prompts)", ylabel="tokens in the cache", title="kv_lens")
left.legend(fontsize=8)

rows = int(step.batch.cu_q_lens[-1])
for row in range(rows):
    slot, position = step.batch.slot_ids[row], step.batch.positions[row]
    right.barh(row, position + 1, height=0.86, color=COLOURS[slot])
for start in step.batch.cu_q_lens[1:-1]:
    right.axhline(start - 0.5, color="black", linewidth=0.8)
right.set(xlabel="place in the slot's own cache", ylabel="packed row", ylim=(rows - 0.5, -0.5))
right.set_title(f"what each row of step {NUMBER} attends to")
plt.show()

# %% [markdown]
# ## Two layouts of the cache
#
# If each slot has its own length, its next token goes right after its last one, and the next step
# overwrites what rejected drafts wrote there. The padded method keeps all samples aligned: each
# grows by as much as the sample that accepted most. The difference remains as holes, which every
# later step reads and masks. The picture is drawn from layer 0 of the two caches of the run above.

# %%
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch

KINDS = {
    "never written": "#f4f4f4",
    "left over from a rejected draft": "#f2b8b5",
    "hole": "#c0392b",
    "token": "#4a90d9",
}


def kinds_of(state) -> np.ndarray:
    """Returns what is at each place of each slot's cache, as an index into KINDS."""
    holes = np.zeros(state.tokens.shape, bool) if state.holes is None else np.array(state.holes.at)
    written = np.array(state.cache[0]).any(axis=(-2, -1))
    ends = np.array(state.kv_lens) + holes.sum(axis=1)
    valid = np.arange(holes.shape[1]) < ends[:, None]
    return np.where(valid, np.where(holes, 2, 3), np.where(written, 1, 0))


layouts = {"own lengths (ems)": kinds_of(state), "aligned (vanilla)": kinds_of(aligned_state)}
shown = max(int(np.flatnonzero(kinds.any(axis=0)).max()) for kinds in layouts.values()) + 4
figure, both = plt.subplots(2, 1, figsize=(11, 3.8), sharex=True, layout="constrained")
for axes, (name, kinds) in zip(both, layouts.items(), strict=True):
    axes.pcolormesh(
        kinds[:, :shown],
        cmap=ListedColormap(list(KINDS.values())),
        vmin=0,
        vmax=3,
        edgecolor="white",
        linewidth=0.4,
    )
    axes.set(yticks=np.arange(len(prompts)) + 0.5, ylim=(len(prompts), 0), title=name)
    axes.set_yticklabels([f"slot {slot}" for slot in range(len(prompts))])
both[1].set_xlabel("place in the cache")
figure.legend(
    handles=[Patch(color=c, label=k) for k, c in KINDS.items()],
    loc="outside lower center",
    ncols=4,
    fontsize=9,
)
plt.show()
for name, each in (("own lengths", state), ("aligned", aligned_state)):
    read, empty = int(each.stats.cached.sum()), int(each.stats.empty.sum())
    print(f"{name}: {read} places read over the run, {empty} of them holes")

# %% [markdown]
# ## One token in the cache
#
# The cache is `[layer, slot, place, R, 128]`: a token's keys, head by head, then its values, in R
# rows of 128 lanes. So a token is one aligned piece of memory, and writing it at any place is one
# copy. The tokens of a slot are one run of memory, so the kernel can fetch them in large blocks.

# %%
from matplotlib.colors import SymLogNorm

config = model_config(loaded.hf_config)
heads, width = config.num_kv_heads, config.head_dim
token = np.array(state.cache[0, 0, 2]).astype(np.float32)
limit = np.abs(token).max()
figure, axes = plt.subplots(figsize=(11, 0.5 * len(token) + 1.0), layout="constrained")
# Values are much smaller than keys, so a linear scale would not show both.
scale = SymLogNorm(linthresh=limit / 1000, vmin=-limit, vmax=limit)
mesh = axes.pcolormesh(token, cmap="RdBu", norm=scale)
for number in range(2 * heads):
    row, lane = divmod(number * width, 128)
    label = f"{'key' if number < heads else 'value'} {number % heads}"
    axes.text(
        lane + 2,
        row + 0.5,
        label,
        va="center",
        fontsize=9,
        bbox={"facecolor": "white", "alpha": 0.8, "linewidth": 0},
    )
    axes.plot([lane, lane], [row, row + 1], color="black")
axes.set(ylim=(len(token), 0), yticks=np.arange(len(token)) + 0.5, xlabel="lane")
axes.set_yticklabels([f"row {row}" for row in range(len(token))])
axes.set_title(f"layer 0, slot 0, place 2: {heads} heads of width {width}, {state.cache.dtype}")
figure.colorbar(mesh, ax=axes, pad=0.01, ticks=[-1, -0.1, -0.01, 0, 0.01, 0.1, 1])
plt.show()

# %% [markdown]
# ## The kernel itself
#
# This is the call that the model makes, on the cache of this run, compared with attention written
# out plainly. On a TPU it is a Pallas kernel for the matrix units (Mosaic), on a Hopper GPU one for
# the tensor cores, and elsewhere the same contract in XLA. `backend=` names one; if it cannot be
# used, an error says why.

# %%
import jax.numpy as jnp

from emsjax.pallas_kernels.kv_layout import read_kv
from emsjax.pallas_kernels.ragged_attention.api import ragged_attention

q_lens = np.array([3, 1, 0, 4], np.int32)  # a slot without rows costs nothing
cu_q_lens = np.concatenate([[0], np.cumsum(q_lens)]).astype(np.int32)
kv_lens, dtype, scale = np.array(state.kv_lens), loaded.model.dtype, width**-0.5
queries = jax.random.normal(jax.random.key(0), (8, config.num_heads, width), dtype)
options = {"num_kv_heads": heads, "max_q_len": 8, "scale": scale}
layer = jnp.int32(0)
lengths = {"cu_q_lens": cu_q_lens, "kv_lens": kv_lens}
# Some devices would round products of float32 to fewer bits.
with jax.default_matmul_precision("highest" if dtype == jnp.float32 else None):
    attended = ragged_attention(queries, state.cache, layer=layer, **lengths, **options)

for slot in range(len(prompts)):
    length = int(kv_lens[slot])
    found = read_kv(state.cache, layer, jnp.int32(slot), jnp.int32(0), length, heads, width, dtype)
    keys, values = (
        np.repeat(np.array(x, np.float64), config.num_heads // heads, axis=0) for x in found
    )
    for row in range(cu_q_lens[slot], cu_q_lens[slot + 1]):
        seen = length - (cu_q_lens[slot + 1] - 1 - row)  # its own place and all places before it
        scores = scale * np.einsum("nh,nsh->ns", np.array(queries[row], np.float64), keys[:, :seen])
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        weights /= weights.sum(axis=1, keepdims=True)
        plain = np.einsum("ns,nsh->nh", weights, values[:, :seen])
        error = np.abs(plain - np.array(attended[row], np.float64)).max()
        assert error < (1e-4 if dtype == jnp.float32 else 5e-2), error
        print(f"row {row}, slot {slot}: attends to {seen} tokens, differs by {error:.1e} at most")
