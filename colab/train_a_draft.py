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
# # emsjax: train a draft for your model
#
# This notebook trains a small draft that continues from your model's own hidden states. It learns
# from what your model itself writes in answer to your prompts. No other data is needed, and the
# draft changes only the speed.
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
# ## Model and prompts
#
# Train on prompts like those that you will use: JSON lines with `prompt` or `messages`, or plain
# text with an empty line between passages, which the model continues. The stand-in here is the text
# of Python's own reference, which every Python includes. On a CPU this is only a taste, with about
# 40,000 tokens; the draft that comes with the default model learnt from 1.8 million.

# %%
import json
from pydoc_data.topics import topics

from IPython.display import Image, display

MODEL = None  # a hub id or a directory; None is SmolLM2-135M-Instruct
DTYPE = "float32" if PLATFORM == "cpu" else "bfloat16"
PROMPTS = Path("prompts.txt")
COUNT = 12 if SMALL else 400 if PLATFORM == "cpu" else 4000
passages = [" ".join(p.split()) for text in topics.values() for p in text.split("\n\n")]
passages = [passage for passage in passages if len(passage) > 120]
if not PROMPTS.is_file():  # keeps a file of your own
    PROMPTS.write_text("\n\n".join(passages[:COUNT]))
print(f"{PROMPTS} begins: {PROMPTS.read_text()[:160]} …")

# %% [markdown]
# ## Train
#
# First the model writes, then the draft learns. Everything is kept in `run/`, and after an
# interrupt the same command continues. On Colab, mount Drive (the folder icon at the left) and set
# `RUN` to a folder there, so that the run outlives the runtime. For other prompts or steps, use
# another `RUN`. After "Use it" below, the kernel holds the device: restart it before you train
# again.

# %%
RUN = Path("run")
TRAIN = f"python -m emsjax.train --input '{PROMPTS}' --output '{RUN}' --dtype {DTYPE}"
TRAIN += f" --model '{MODEL}'" if MODEL else ""
if SMALL:
    TRAIN += " --outputs 1 --max-tokens 24 --batch-size 12 --ignore-eos --layers 1 --width 64"
    TRAIN += " --vocabulary 256 --held-out 0.3 --steps 24 --rows 4 --unroll 2 --evaluate-every 8"
elif PLATFORM == "cpu":
    TRAIN += " --outputs 1 --max-tokens 96 --batch-size 16 --steps 400 --evaluate-every 50"
output = run(TRAIN)

# %% [markdown]
# ## Curves
#
# The left curve is the loss on the training texts. The right curves are what counts: accepted
# tokens per step on held-out texts, for drafts of one, three and five tokens. While they still
# rise, more prompts and more `--steps` pay off.

# %%
display(Image(RUN / "curves.png"))
log = [json.loads(line) for line in (RUN / "log.jsonl").read_text().splitlines()]
print(f"after {log[-1]['step']} updates: {log[-1]['accepted'][0]:.2f} of 1 drafted token accepted")

# %% [markdown]
# ## Use it
#
# `draft_model=` takes the folder of the draft. The next cells compare it with prompt lookup, on
# prompts that were not trained on: the tokens are the same, in fewer steps of the model. Whether
# fewer steps take less time depends on the device and the batch; the notebook `your_model` measures
# that.

# %%
from emsjax import LLM, Report, SamplingParams

TESTS = [
    "Explain what a Python generator is, with an example.",
    "What is the difference between a list and a tuple in Python?",
]
conversations = [[{"role": "user", "content": prompt}] for prompt in TESTS]
OPTIONS = {"dtype": DTYPE, "max_batch_size": 2, "max_model_len": 256 if SMALL else 1024}
OPTIONS |= {"planner": False, "draft_length": 3, "trace": True}  # every draft is verified
params = SamplingParams(max_tokens=16 if SMALL else 128)


def generate(**drafting):
    """Returns the outputs with one drafter."""
    return LLM(MODEL, **OPTIONS, **drafting).chat(conversations, params)


outputs = {
    "prompt-lookup": generate(drafter="prompt-lookup"),
    "your draft": generate(drafter="draft-model", draft_model=str(RUN / "draft")),
}

# %%
import matplotlib.pyplot as plt

figure, axes = plt.subplots(figsize=(6, 2.2), layout="constrained")
rates = {name: Report(some).totals.tokens_per_target_step for name, some in outputs.items()}
bars = axes.barh(list(rates), list(rates.values()), color="#5b8ff9")
axes.bar_label(bars, fmt="%.2f", padding=3)
axes.axvline(1, color="black", linewidth=0.8)
axes.set(xlabel="tokens per step of the model; plain decoding has 1")
axes.margins(x=0.12)
plt.show()

# %%
Report(outputs["your draft"], title="Your draft")
