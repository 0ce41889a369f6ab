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
# # emsjax: your own model
#
# A Hugging Face model of yours on one TPU v5e chip (16 GB): does it fit, in which type, with which
# drafter; a file of prompts from Drive; and going on after a disconnect. It runs on a GPU and on a
# CPU, too. OPT, GPT-2, Llama, Mistral, Qwen2 and Qwen3 are supported, and what shares their
# architecture.
#
# In Colab: *Runtime → Change runtime type → v5e-1 TPU*, then upload the wheel `emsjax-….whl` with
# the folder icon at the left. In a clone of the repository there is nothing to upload.

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
# ## Which model
#
# A hub id, or a directory or GGUF file on this machine. `DRAFT_MODEL` is a smaller model with the
# same vocabulary, or a draft that you trained (notebook `train_a_draft`); None goes without.

# %%
import json
import shutil

from IPython.display import HTML, Image, Markdown, display

if SMALL:
    from emsjax.loading.default_model import default_model_dir

    MODEL, DRAFT_MODEL = str(default_model_dir()), None
elif PLATFORM == "cpu":
    MODEL, DRAFT_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct", None
else:
    MODEL, DRAFT_MODEL = "Qwen/Qwen2.5-1.5B-Instruct", "Qwen/Qwen2.5-0.5B-Instruct"

# 16-bit numbers are a TPU's and a GPU's own, and take half the memory; a CPU prefers 32 bits.
DTYPE = "float32" if PLATFORM == "cpu" else "bfloat16"
BATCH_SIZE = 2 if SMALL else 4 if PLATFORM == "cpu" else 32
MAX_MODEL_LEN = 256 if SMALL else 1024
MAX_TOKENS = 16 if SMALL else 256

# %% [markdown]
# ## Does it fit?
#
# `emsjax.plan` says what the decode program takes of a TPU v5e's memory, the largest batch, and how
# long a step should take, from the model's configuration alone; nothing runs on the chip. On a TPU
# runtime it asks the TPU's own compiler, elsewhere it counts. `--topology` names other devices. A
# draft model comes on top: its weights, and a cache of its own.

# %%
COMPILER = PLATFORM == "tpu" and not SMALL  # it comes with jax[tpu]
PLAN = f"python -m emsjax.plan --model '{MODEL}' --topology v5e --batch-size {BATCH_SIZE}"
PLAN += f" --max-model-len {MAX_MODEL_LEN}" + ("" if COMPILER else " --no-compile")
said = run(PLAN)

# %% [markdown]
# Weights, cache and temporaries in two types, counted in both cases. If it does not fit: a smaller
# batch, shorter samples, or bfloat16.

# %%
import matplotlib.pyplot as plt


def memory(dtype: str) -> dict:
    """The plan for a type."""
    words = [sys.executable, *shlex.split(PLAN)[1:], "--dtype", dtype, "--no-compile", "--json"]
    return json.loads(subprocess.run(words, stdout=subprocess.PIPE, check=True).stdout)[0]


plans = {dtype: memory(dtype) for dtype in ("bfloat16", "float32")}
figure, axes = plt.subplots(figsize=(8, 2.4), layout="constrained")
left = [0.0] * len(plans)
for part in ("weights", "cache", "state", "temporaries"):
    sizes = [plan["memory"][part] / 1e9 for plan in plans.values()]
    axes.barh(list(plans), sizes, left=left, label=part)
    left = [sum(pair) for pair in zip(left, sizes, strict=True)]
usable = plans["bfloat16"]["usable_bytes"] / 1e9
axes.axvline(usable, color="black", linestyle="--", label="there is")
axes.set(xlabel="GB", xlim=(0, 1.05 * max(*left, usable)))
axes.set_title(f"{BATCH_SIZE} samples of {MAX_MODEL_LEN} tokens on one TPU v5e", fontsize=10)
axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
plt.show()

# %% [markdown]
# ## A file of prompts, on Drive
#
# One JSON object a line: `prompt`, `messages` or `prompt_token_ids`, optionally an `id` and
# sampling parameters. On Colab the folder is on Drive, so that the results outlive the runtime.

# %%
if "google.colab" in sys.modules:
    from google.colab import drive

    drive.mount("/content/drive")
    FOLDER = Path("/content/drive/MyDrive/emsjax")
else:
    FOLDER = Path("prompts")
FOLDER.mkdir(exist_ok=True)
PROMPTS, RESULTS = FOLDER / "prompts.jsonl", FOLDER / "results.jsonl"
REPORT = FOLDER / "report.html"

EXAMPLES = [
    "Summarise: The river rises in the hills, feeds two mills, and reaches the sea at the port.",
    "Translate to French: The river rises in the hills.",
    "List the months of the year, one a line.",
    "What is 12 times 12? Explain how to work it out.",
]
if not PROMPTS.is_file():
    lines = [json.dumps({"id": f"example-{n}", "prompt": text}) for n, text in enumerate(EXAMPLES)]
    PROMPTS.write_text("\n".join(lines) + "\n")

# %% [markdown]
# ## Generate, and go on after a disconnect
#
# Results are written line by line, each as soon as it is final. With `--resume` the same cell
# begins and goes on: what is finished is not generated again, so with another model or other
# settings give `RESULTS` another name. A line that is wrong ends the cell with an error once the
# others are done: mend it and run the cell again.

# %%
GENERATE = (
    f"python -m emsjax.generate --model '{MODEL}' --dtype {DTYPE} --batch-size {BATCH_SIZE}"
    f" --max-model-len {MAX_MODEL_LEN} --max-tokens {MAX_TOKENS} --chat"
    f" --input '{PROMPTS}' --resume"
)
GENERATE += f" --draft-model '{DRAFT_MODEL}'" if DRAFT_MODEL else ""
GENERATE += " --no-planner --draft-length 3" if SMALL else ""
said = run(f"{GENERATE} --output '{RESULTS}' --report '{REPORT}'")

# %% [markdown]
# A disconnect leaves some whole lines and perhaps half of one. Here is that, in a copy, and the
# same command again.

# %%
INTERRUPTED = Path("interrupted.jsonl")
*whole, last = RESULTS.read_bytes().splitlines(keepends=True)
INTERRUPTED.write_bytes(b"".join(whole) + last[: len(last) // 2])
said = run(f"{GENERATE} --output '{INTERRUPTED}'")


def texts(file: Path) -> dict:
    """The text of each id in a file of results, or what was wrong with its line."""
    records = map(json.loads, file.read_text().splitlines())
    return {r["id"]: r.get("text", r.get("error")) for r in records}


assert texts(INTERRUPTED).keys() == texts(RESULTS).keys()
for name, text in list(texts(RESULTS).items())[:5]:
    print(f"{name}: {text[:200]!r}")

# %% [markdown]
# The page that `--report` wrote, on the first run: where each token came from.

# %%
import html

page = html.escape(REPORT.read_text(encoding="utf-8"))
look = 'sandbox="allow-scripts" style="width: 100%; height: 560px; border: 0"'
display(HTML(f'<div><iframe {look} srcdoc="{page}"></iframe></div>'))

# %% [markdown]
# ## Which drafter
#
# Drafters change the speed, never the text; which one is best depends on your prompts.
# `prompt-lookup` needs nothing, with `@3` it drafts three tokens at most,
# `combined` adds the draft model. The benchmark runs them by turns with plain decoding.

# %%
DRAFTERS = "prompt-lookup@3" if SMALL else "prompt-lookup,prompt-lookup@3"
DRAFTERS += ",combined" if DRAFT_MODEL else ""
BENCH = f"python -m emsjax.bench --model '{MODEL}' --dtype {DTYPE} --input '{PROMPTS}' --chat"
BENCH += f" --drafters {DRAFTERS} --output drafters --no-parts"
if DRAFT_MODEL:
    BENCH += f" --draft-model '{DRAFT_MODEL}'"
if SMALL:
    BENCH += " --methods none,ems-fixed --batch-sizes 2 --prompts 2 --max-tokens 16 --repeats 2"
else:
    BENCH += " --methods none,ems --batch-sizes 1,4 --prompts 4"
shutil.rmtree("drafters", ignore_errors=True)
said = run(BENCH)
display(Image(sorted(glob("drafters/speedup-*.png"))[0]))
display(Markdown(Path("drafters/results.md").read_text()))
