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
# This notebook is about your own Hugging Face model on one TPU v5e chip (16 GB): whether it fits,
# in which type and with which drafter; a file of prompts from Drive; and how to continue after a
# disconnect. It also runs on a GPU or a CPU. Most families of dense models are supported; another
# one is refused with the list of all.
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
# ## Which model
#
# `MODEL` is a hub id, or a directory or GGUF file on this machine. `DRAFT_MODEL` is a smaller model
# with the same vocabulary, or a draft that you trained (notebook `train_a_draft`); None means no
# draft model.

# %%
import json
import shutil

from IPython.display import HTML, Image, Markdown, display

if SMALL:
    from emsjax.loading.default_model import default_model_dir

    MODEL, DRAFT_MODEL = str(default_model_dir()), None
elif PLATFORM == "cpu":
    MODEL, DRAFT_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct", None
elif PLATFORM == "tpu":
    MODEL, DRAFT_MODEL = "Qwen/Qwen3-8B", "Qwen/Qwen3-0.6B"
else:
    MODEL, DRAFT_MODEL = "Qwen/Qwen2.5-1.5B-Instruct", "Qwen/Qwen2.5-0.5B-Instruct"

# 16-bit numbers are native on a TPU or GPU and take half the memory; a CPU prefers 32 bits.
DTYPE = "float32" if PLATFORM == "cpu" else "bfloat16"
# On a TPU, int8 takes half of that again, for weights and cache: 8 billion weights fit 16 GB.
INT8 = " --quantize int8 --kv-dtype int8"
OPTIONS = INT8 if PLATFORM == "tpu" and not SMALL else ""
BATCH_SIZE = 2 if SMALL else 4 if PLATFORM == "cpu" else 16
MAX_MODEL_LEN = 256 if SMALL else 1024
MAX_TOKENS = 16 if SMALL else 256

# %% [markdown]
# ## Does it fit?
#
# From the model's configuration alone, `emsjax.plan` says how much of a TPU v5e's memory the decode
# program takes, what the largest batch is, and how long a step should take. Nothing runs on the
# chip. On a TPU runtime it asks the TPU's own compiler, elsewhere it counts. `--topology` names
# other devices. A draft model is not included: its weights and its own cache come on top.

# %%
COMPILER = PLATFORM == "tpu" and not SMALL  # it comes with jax[tpu]
PLAN = f"python -m emsjax.plan --model '{MODEL}' --topology v5e --batch-size {BATCH_SIZE}"
PLAN += f" --max-model-len {MAX_MODEL_LEN}" + ("" if COMPILER else " --no-compile")
output = run(PLAN + OPTIONS)

# %% [markdown]
# The figure shows weights, cache and temporaries in three types, counted and not compiled. If the
# model does not fit, try a smaller batch, shorter samples, or int8.

# %%
import matplotlib.pyplot as plt


def memory(options: str) -> dict:
    """Returns the plan with some options."""
    words = [sys.executable, *shlex.split(PLAN + options)[1:], "--no-compile", "--json"]
    return json.loads(subprocess.run(words, stdout=subprocess.PIPE, check=True).stdout)[0]


types = {"int8": f"--dtype bfloat16{INT8}"}
types |= {dtype: f"--dtype {dtype}" for dtype in ("bfloat16", "float32")}
plans = {name: memory(f" {options}") for name, options in types.items()}
figure, axes = plt.subplots(figsize=(8, 2.4), layout="constrained")
left = [0.0] * len(plans)
for part in ("weights", "cache", "state", "temporaries"):
    sizes = [plan["memory"][part] / 1e9 for plan in plans.values()]
    axes.barh(list(plans), sizes, left=left, label=part)
    left = [sum(pair) for pair in zip(left, sizes, strict=True)]
usable = plans["bfloat16"]["usable_bytes"] / 1e9
axes.axvline(usable, color="black", linestyle="--", label="available")
axes.set(xlabel="GB", xlim=(0, 1.05 * max(*left, usable)))
axes.set_title(f"{BATCH_SIZE} samples of {MAX_MODEL_LEN} tokens on one TPU v5e", fontsize=10)
axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
plt.show()

# %% [markdown]
# ## A file of prompts, on Drive
#
# Each line is one JSON object with `prompt`, `messages` or `prompt_token_ids`, and optionally an
# `id` and sampling parameters. On Colab the folder is on Drive, so that the results outlive the
# runtime.

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
    "List the months of the year, one per line.",
    "What is 12 times 12? Explain how to work it out.",
]
if not PROMPTS.is_file():
    lines = [json.dumps({"id": f"example-{n}", "prompt": text}) for n, text in enumerate(EXAMPLES)]
    PROMPTS.write_text("\n".join(lines) + "\n")

# %% [markdown]
# ## Generate, and continue after a disconnect
#
# Results are written line by line, each as soon as it is final. With `--resume` the same cell
# starts a run and continues one. Finished prompts are not generated again, so for another model or
# other settings, give `RESULTS` another name. A bad line ends the cell with an error once the other
# lines are done: fix it and run the cell again.

# %%
GENERATE = (
    f"python -m emsjax.generate --model '{MODEL}' --dtype {DTYPE} --batch-size {BATCH_SIZE}"
    f" --max-model-len {MAX_MODEL_LEN} --max-tokens {MAX_TOKENS} --chat"
    f" --input '{PROMPTS}' --resume{OPTIONS}"
)
GENERATE += f" --draft-model '{DRAFT_MODEL}'" if DRAFT_MODEL else ""
GENERATE += " --no-planner --draft-length 3" if SMALL else ""
output = run(f"{GENERATE} --output '{RESULTS}' --report '{REPORT}'")

# %% [markdown]
# A disconnect leaves some whole lines and perhaps half a line. The next cell imitates this in a
# copy and runs the same command again.

# %%
INTERRUPTED = Path("interrupted.jsonl")
*whole, last = RESULTS.read_bytes().splitlines(keepends=True)
INTERRUPTED.write_bytes(b"".join(whole) + last[: len(last) // 2])
output = run(f"{GENERATE} --output '{INTERRUPTED}'")


def texts(file: Path) -> dict:
    """Returns the text of each id in a file of results, or the error of its line."""
    records = map(json.loads, file.read_text().splitlines())
    return {r["id"]: r.get("text", r.get("error")) for r in records}


assert texts(INTERRUPTED).keys() == texts(RESULTS).keys()
for name, text in list(texts(RESULTS).items())[:5]:
    print(f"{name}: {text[:200]!r}")

# %% [markdown]
# This is the page that `--report` wrote on the first run. It shows where each token came from.

# %%
import html

page = html.escape(REPORT.read_text(encoding="utf-8"))
look = 'sandbox="allow-scripts" style="width: 100%; height: 560px; border: 0"'
display(HTML(f'<div><iframe {look} srcdoc="{page}"></iframe></div>'))

# %% [markdown]
# ## Which drafter
#
# A drafter changes the speed, never the text, and your prompts decide which one is best.
# `prompt-lookup` needs nothing; with `@3` it drafts at most three tokens. `combined` adds the draft
# model. The benchmark runs them in turn with plain decoding.

# %%
DRAFTERS = "prompt-lookup@3" if SMALL else "prompt-lookup,prompt-lookup@3"
DRAFTERS += ",combined" if DRAFT_MODEL else ""
BENCH = f"python -m emsjax.bench --model '{MODEL}' --dtype {DTYPE} --input '{PROMPTS}' --chat"
BENCH += f" --drafters {DRAFTERS} --output drafters --no-parts{OPTIONS}"
if DRAFT_MODEL:
    BENCH += f" --draft-model '{DRAFT_MODEL}'"
if SMALL:
    BENCH += " --methods none,ems-fixed --batch-sizes 2 --prompts 2 --max-tokens 16 --repeats 2"
else:
    BENCH += " --methods none,ems --batch-sizes 1,4 --prompts 4"
shutil.rmtree("drafters", ignore_errors=True)
output = run(BENCH)
display(Image(sorted(glob("drafters/speedup-*.png"))[0]))
display(Markdown(Path("drafters/results.md").read_text()))
