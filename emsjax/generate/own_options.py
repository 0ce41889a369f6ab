"""The options that only generation has, one type each: what it reads, writes and samples."""

from typing import Annotated

from emsjax.cli.declare import number, option

# The default of options that a model's generation config may set.
_MODELS = "(default: the model's, else off)"
_IO, _SAMPLING = "Input and output", "Sampling"

Prompt = Annotated[
    list[str] | None,
    option("--prompt", "A prompt; repeat for more.", _IO, "TEXT"),
]
Input = Annotated[
    str | None,
    option("--input", "Read JSON lines, one request each; - for stdin.", _IO, "FILE|-"),
]
Output = Annotated[
    str | None,
    option("--output", "Write JSON lines; - for stdout.", _IO, "FILE|-"),
]
Report = Annotated[
    str | None,
    option("--report", "Write an HTML page that shows each token's origin.", _IO, "FILE.html"),
]
Chat = Annotated[bool, option("--chat", "Wrap text prompts in the chat template.", _IO)]
System = Annotated[
    str | None, option("--system", "System message of text prompts; with --chat.", _IO, "TEXT")
]
Resume = Annotated[bool, option("--resume", "Continue --output, skipping finished ids.", _IO)]
Overwrite = Annotated[bool, option("--overwrite", "Replace --output if it holds results.", _IO)]
DataParallel = Annotated[
    int,
    number("--data-parallel", "Copies of the model, each on its own device.", "Model"),
]
MaxTokens = Annotated[
    int, number("--max-tokens", "Maximum tokens to generate per output.", _SAMPLING)
]
MinTokens = Annotated[
    int | None,
    number("--min-tokens", "Minimum tokens to generate per output. (default: 0)", _SAMPLING),
]
Temperature = Annotated[
    float, number("--temperature", "0 always takes the likeliest token.", _SAMPLING, float)
]
AdaptTemperature = Annotated[
    float | None,
    number("--adapt-temperature", "Temperature at the start of indented lines.", _SAMPLING, float),
]
TopK = Annotated[
    int | None, number("--top-k", f"Keep the N likeliest tokens. {_MODELS}", _SAMPLING)
]
TopP = Annotated[
    float | None,
    number("--top-p", f"Keep the likeliest tokens that sum to N. {_MODELS}", _SAMPLING, float),
]
MinP = Annotated[
    float | None,
    number("--min-p", f"Keep tokens N times as likely as the top one. {_MODELS}", _SAMPLING, float),
]
N = Annotated[int, number("--n", "Outputs per prompt.", _SAMPLING)]
PresencePenalty = Annotated[
    float, number("--presence-penalty", "Penalise tokens in the output.", _SAMPLING, float)
]
FrequencyPenalty = Annotated[
    float, number("--frequency-penalty", "Penalise each occurrence.", _SAMPLING, float)
]
RepetitionPenalty = Annotated[
    float | None,
    number(
        "--repetition-penalty", f"Penalise tokens in prompt and output. {_MODELS}", _SAMPLING, float
    ),
]
NoRepeatNgramSize = Annotated[
    int | None,
    number("--no-repeat-ngram-size", f"Never repeat N tokens in a row. {_MODELS}", _SAMPLING),
]
Stop = Annotated[
    list[str] | None,
    option("--stop", "End the output before this; repeat for more.", _SAMPLING, "TEXT"),
]
Logprobs = Annotated[
    int | None,
    number("--logprobs", "Add log-probabilities of the token and the N likeliest.", _SAMPLING),
]
PromptLogprobs = Annotated[
    int | None,
    number("--prompt-logprobs", "The same for the prompt's tokens.", _SAMPLING),
]
JsonSchema = Annotated[
    str | None,
    option("--json-schema", "Write JSON that fits this schema.", _SAMPLING, "FILE"),
]
Seed = Annotated[
    int, number("--seed", "Each prompt's seed follows from this and its id.", _SAMPLING)
]
IgnoreEos = Annotated[bool, option("--ignore-eos", "Continue past the end of text.", _SAMPLING)]
Stream = Annotated[bool, option("--stream", "Print text as it is generated.", _IO)]
