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
# # emsjax: quickstart
#
# Batched text generation with speculative decoding: every prompt drafts its own next tokens, one
# pass of the model verifies them all, nothing is padded, and the text is the one that plain
# decoding gives.
#
# Runs on a TPU, a GPU or a CPU. In Colab: *Runtime → Change runtime type → v5e-1 TPU*, then upload
# the wheel `emsjax-….whl` with the folder icon at the left; in a clone of the repository
# `python3 -m pip wheel --no-deps -w dist .` makes it, and there is nothing to upload.

# %%
# Setup, the same in all notebooks: install emsjax for the device that this runtime has.
import os
import shlex
import subprocess
import sys
from glob import glob
from pathlib import Path

# What this release was tested with.
PINS = "jax==0.10.2 flax==0.12.8 transformers==5.24.0"
# Set by the project's own tests: everything small, and nothing installed.
SMALL = "EMSJAX_NOTEBOOK_TEST" in os.environ


def run(command: str) -> str:
    """As a terminal would, but an error ends the cell; gives what the command said."""
    print("$", command)
    said = []
    words = [sys.executable if word == "python" else word for word in shlex.split(command)]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(words, **options) as process:
        try:
            for line in process.stdout:
                print(line, end="")
                said.append(line)
        except KeyboardInterrupt:  # it was told, too: its last words, and the device is free again
            print(process.communicate()[0], end="")
            raise
    if process.returncode:
        raise RuntimeError(f"the command ended with exit status {process.returncode}")
    return "".join(said)


if not SMALL:
    source = next(iter(glob("emsjax-*.whl")), "..")
    if source == ".." and not Path("../pyproject.toml").is_file():
        sys.exit("Upload the wheel, emsjax-….whl, beside this notebook, and run this again.")
    tpu = glob("/dev/accel*") + glob("/dev/vfio/[0-9]*")
    device = ",cuda" if glob("/dev/nvidia[0-9]*") else ",tpu" if tpu else ""
    run(f"python -m pip install --quiet '{source}[train{device}]' {PINS}")
# In a process of its own: a TPU belongs to one at a time, and commands may want it below.
said = run("python -c 'from emsjax.host.device import device_name; print(device_name())'")
PLATFORM = said.splitlines()[-1].split()[0]  # "tpu", "gpu" or "cpu"
if not SMALL and device and PLATFORM == "cpu":
    sys.exit("jax cannot use the accelerator of this runtime: restart it, and try again.")

# %% [markdown]
# ## The model
#
# Without a name it is SmolLM2-135M-Instruct, which comes with a small trained draft. Put the name
# of a model on the Hugging Face hub, or a directory, in the place of `None`; the notebook
# `your_model` says what fits. The first prompt compiles it.

# %%
from emsjax import LLM, SamplingParams

MODEL = None
BATCH_SIZE = 2 if SMALL else 4 if PLATFORM == "cpu" else 16
llm = LLM(MODEL, max_batch_size=BATCH_SIZE, max_model_len=256 if SMALL else 1024, trace=True)
print(f"{llm.name} in {llm.target.dtype}, {BATCH_SIZE} samples at a time")

# %% [markdown]
# ## Your prompts
#
# Any number of them: those beyond the batch size wait, and each takes a slot as soon as one is
# free. `llm.chat` puts them into the model's chat template, `llm.generate` takes them as they are.

# %%
PROMPTS = [
    "Why is the sky blue? Answer in two sentences.",
    "Write a haiku about rivers.",
    "Repeat this, with the names in capitals: Ada met Grace, Grace met Alan, and Alan met Ada.",
    "Write a Python function that adds up the even numbers of a list.",
    "Name three animals that live in the sea, and what each of them eats.",
]

conversations = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
outputs = llm.chat(conversations, SamplingParams(max_tokens=24 if SMALL else 128))
for output, prompt in zip(outputs, PROMPTS, strict=True):
    print(f"— {prompt}\n{output.outputs[0].text}")
    print(f"  [{output.metrics.tokens_per_target_step:.2f} tokens a step of the model]\n")

# %% [markdown]
# ## Streaming
#
# The pieces of a text, each as soon as it is final.

# %%
for piece in llm.stream(conversations[0], SamplingParams(max_tokens=24 if SMALL else 128)):
    print(piece.text, end="", flush=True)

# %% [markdown]
# ## What speculation did
#
# The texts coloured by where each token came from; rejected drafts show under the pointer. The page
# is one file that needs no network: `Report(outputs).save("report.html")`.

# %%
from emsjax import Report

Report(outputs, title=f"{llm.name}: your prompts")

# %% [markdown]
# ## How much faster
#
# The package's own benchmark runs plain decoding and emsjax on your prompts by turns, in the same
# loop and the same cache. emsjax goes by what a step takes on your device, and drafts no more than
# pays: the more samples share a step, the less there is to win. It loads the model itself, so the
# one from above goes first.

# %%
import json
import tempfile

from emsjax.bench.__main__ import main as bench

del llm
folder = Path(tempfile.mkdtemp())
lines = [json.dumps({"messages": messages}) for messages in conversations]
(folder / "prompts.jsonl").write_text("\n".join(lines))
settings = f"--input {folder}/prompts.jsonl --output {folder} --no-parts"
if SMALL:
    settings += " --methods none,ems-fixed --drafters prompt-lookup@3 --batch-sizes 2 --prompts 2"
    settings += " --max-tokens 16 --repeats 2"
else:
    settings += " --methods none,ems --batch-sizes 1,2,4 --prompts 4"
    settings += f" --model {MODEL}" if MODEL else " --drafters combined"
assert bench(shlex.split(settings)) == 0

# %%
import matplotlib.pyplot as plt

records = json.loads((folder / "results.json").read_text())
ours = [record for record in records if record["method"] != "none"]
speedups = [record["decode_speedup"] for record in ours]
below, above = zip(*(record["decode_speedup_spread"] for record in ours), strict=True)
errors = [
    [middle - low for middle, low in zip(speedups, below, strict=True)],
    [high - middle for middle, high in zip(speedups, above, strict=True)],
]

figure, axes = plt.subplots(figsize=(6, 3.4), layout="constrained")
places = [str(record["batch_size"]) for record in ours]
bars = axes.bar(places, speedups, 0.6, yerr=errors, capsize=4, color="#5b8ff9")
axes.bar_label(bars, [f"{speedup:.2f}" for speedup in speedups], label_type="center", color="white")
axes.axhline(1, color="black", linewidth=0.8)
axes.set(xlabel="batch size", ylabel="speedup over plain decoding")
axes.set_title(f"{ours[0]['model']} on {ours[0]['device']}", fontsize=9)
plt.show()
