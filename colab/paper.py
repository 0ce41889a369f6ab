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
# # emsjax: the paper's experiment
#
# [EMS-SD](https://arxiv.org/abs/2405.07542) compares batched speculative decoding with and without
# padding. It has plain decoding, the padded method (`vanilla`), two methods that each remove half
# of the padding (`unpad-kv`, `unpad-input`), and one without padding (`ems`). Here all of them are
# policies of one loop and write the same text. Drafts come from prompt lookup, as in the paper.
#
# In Colab, choose *Runtime → Change runtime type → v5e-1 TPU*, then upload the wheel `emsjax-….whl`
# with the folder icon at the left. In a clone of the repository there is nothing to upload.

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
# ## Settings
#
# The settings are small by default. The paper's settings are OPT-6.7B in float16 on one GPU,
# CNN/DailyMail, 128 new tokens, and batch sizes up to 24.

# %%
import json
import shutil
from urllib.request import urlretrieve

from IPython.display import Image, Markdown, display

SETTINGS = {
    "cpu": "--batch-sizes 1,4 --prompts 4 --max-tokens 64 --repeats 2",
    "gpu": "--model HuggingFaceTB/SmolLM2-1.7B-Instruct --dtype bfloat16 --batch-sizes 1,2,4,8,16",
    "tpu": "--model HuggingFaceTB/SmolLM2-1.7B-Instruct --dtype bfloat16 --batch-sizes 1,2,4,8,16",
}[PLATFORM]
# The drafts of the paper are looked up.
SETTINGS += " --drafters prompt-lookup"
METHODS = "none,vanilla,unpad-kv,unpad-input,ems-fixed,ems"
if SMALL:
    SETTINGS = "--batch-sizes 2 --prompts 2 --max-tokens 16 --repeats 1 --no-parts"
    SETTINGS += " --drafters prompt-lookup@3"
    METHODS = "none,vanilla,ems-fixed"

# %% [markdown]
# ## Prompts
#
# The prompts are summaries from [Spec-Bench](https://github.com/hemingkx/Spec-Bench) instead of
# CNN/DailyMail. You can use any JSON lines that have `prompt` or `messages`, and a `category`,
# which is `summarization` here.

# %%
INPUT = Path("prompts.jsonl")
SPEC_BENCH = (
    "https://raw.githubusercontent.com/hemingkx/Spec-Bench/main/data/spec_bench/question.jsonl"
)
ARTICLES = [
    "The river rises in the hills, feeds two mills, and reaches the sea at the port of the hills.",
    "Ada built a bridge of stone, Grace built a bridge of wood, and both of the bridges stand.",
]
if SMALL:
    lines = [
        {"category": "summarization", "turns": [f"Repeat and then summarise: {article}"]}
        for article in ARTICLES
    ]
    INPUT.write_text("".join(json.dumps(line) + "\n" for line in lines))
elif not INPUT.is_file():
    urlretrieve(SPEC_BENCH, INPUT)

# %% [markdown]
# ## Run
#
# Repetitions take turns; the ratios within a repetition are what counts. `ems-fixed` verifies every
# draft, as the paper does. `ems` plans, and leaves out drafts that do not pay off on this device.

# %%
shutil.rmtree("paper", ignore_errors=True)
output = run(
    f"python -m emsjax.bench --input {INPUT} --datasets summarization --methods {METHODS}"
    f" {SETTINGS} --output paper"
)

# %% [markdown]
# ## Results
#
# The plots show the speedup next to the paper's, the tokens per step of the target, and where the
# time of a step goes. Do not expect the paper's figures from another model on other hardware: the
# speedup depends on how much a verified row costs.

# %%
for picture in sorted(glob("paper/*.png")):
    display(Image(picture))
display(Markdown(Path("paper/results.md").read_text()))

# %% [markdown]
# Padding by method: the share of rows that are computed for nothing, and the share of cache places
# that are read for nothing.

# %%
import matplotlib.pyplot as plt

records = json.loads(Path("paper/results.json").read_text())
largest = max(record["batch_size"] for record in records)
some = [r for r in records if r["batch_size"] == largest and not r["error"]]
figure, axes = plt.subplots(figsize=(7, 2.8), layout="constrained")
for number, (field, label) in enumerate(
    {"input_padding": "rows", "cache_padding": "cache"}.items()
):
    places = [place + 0.4 * number for place in range(len(some))]
    bars = axes.bar(places, [100 * record[field] for record in some], 0.38, label=label)
    axes.bar_label(bars, fmt="%.0f", fontsize=8)
axes.set_xticks([place + 0.2 for place in range(len(some))], [r["method"] for r in some])
axes.set(ylabel="% padding", title=f"batch size {largest}")
axes.margins(y=0.15)
axes.legend(fontsize=8)
plt.show()

# %% [markdown]
# ## A large model's shape
#
# Here drafts and acceptance come from a small model, and the cost of a step from a large one.
# `--record` writes what the small model drafted and accepted. `--simulate-acceptance` replays it in
# a model with random weights: the true computation in the true shape, with text and acceptance
# forced. Everything it writes says so. The weights must fit: OPT-6.7B, the paper's model, needs 24
# GB.

# %%
CONFIG = "opt-125m" if PLATFORM == "cpu" else "opt-2.7b"
LARGE = "--batch-sizes 1,4 --prompts 4" if PLATFORM == "cpu" else "--batch-sizes 1,4,8,16"
LARGE += " --prompt-tokens 256 --max-tokens 64"
if SMALL:
    LARGE = "--batch-sizes 2 --prompts 2 --prompt-tokens 32 --max-tokens 8 --repeats 1"
    sizes = {"hidden_size": 64, "word_embed_proj_dim": 64, "ffn_dim": 128, "vocab_size": 256}
    sizes |= {"num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 512}
    CONFIG = Path("config.json")
    CONFIG.write_text(json.dumps({"model_type": "opt", **sizes}))

shutil.rmtree("simulated", ignore_errors=True)
output = run(
    f"python -m emsjax.bench --input {INPUT} --datasets summarization --methods ems-fixed"
    f" {SETTINGS} --output simulated --record acceptance.json"
)
output = run(
    f"python -m emsjax.bench --config {CONFIG} --random-weights --methods {METHODS} {LARGE}"
    " --simulate-acceptance acceptance.json --output simulated --no-parts"
)
display(Image("simulated/speedup-simulated.png"))
