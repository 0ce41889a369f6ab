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
# pass of the model verifies the drafts of all prompts, and nothing is padded. The text is the one
# that plain decoding gives.
#
# The notebook runs on a TPU, a GPU or a CPU. In Colab, choose *Runtime → Change runtime type →
# v5e-1 TPU*, then upload the wheel `emsjax-….whl` with the folder icon at the left. To make the
# wheel, run `python3 -m pip wheel --no-deps -w dist .` in a clone of the repository. If you run the
# notebook in a clone, there is nothing to upload.

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
# ## The model
#
# The default is SmolLM2-135M-Instruct, which comes with a small trained draft. To use another
# model, replace `None` with its name on the Hugging Face hub, or with a directory. The notebook
# `your_model` shows what fits. The first prompt compiles the model.

# %%
from emsjax import LLM, SamplingParams

MODEL = None
BATCH_SIZE = 2 if SMALL else 4 if PLATFORM == "cpu" else 16
llm = LLM(MODEL, max_batch_size=BATCH_SIZE, max_model_len=256 if SMALL else 1024, trace=True)
print(f"{llm.name} in {llm.target.dtype}, {BATCH_SIZE} samples at a time")

# %% [markdown]
# ## Your prompts
#
# There may be any number of prompts. Those beyond the batch size wait, and each takes a slot as
# soon as one is free. `llm.chat` puts them into the model's chat template; `llm.generate` takes
# them as they are.

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
    print(f"  [{output.metrics.tokens_per_target_step:.2f} tokens per step of the model]\n")

# %% [markdown]
# ## Streaming
#
# `llm.stream` yields each piece of a text as soon as it is final.

# %%
for piece in llm.stream(conversations[0], SamplingParams(max_tokens=24 if SMALL else 128)):
    print(piece.text, end="", flush=True)

# %% [markdown]
# ## What speculation did
#
# The report colours each text by where its tokens came from. Rejected drafts appear under the
# pointer. `Report(outputs).save("report.html")` writes it to one file that needs no network.

# %%
from emsjax import Report

Report(outputs, title=f"{llm.name}: your prompts")

# %% [markdown]
# ## How much faster
#
# The benchmark of the package runs plain decoding and emsjax on your prompts in turn, in the same
# loop and the same cache. emsjax takes into account how long a step takes on your device, and
# drafts no more than pays off: the more samples share a step, the less there is to win. The
# benchmark loads the model itself, so the model from above is deleted first.

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
