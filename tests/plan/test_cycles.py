"""The compiler's cycles are read from a program's text."""

from emsjax.plan.cycles import START_CYCLES, StepCycles, read_cycles

LOOP = (
    '%while.{n} = (s32[]) while(%t), condition=%c.{n}, body=%{body}, metadata={{op_name="{scope}"}}'
)
STEP = "jit(run_loop)/while"
RUNG = f"{STEP}/body/target/while"
LAYERS = f"{RUNG}/body/while"
SEARCH = f"{LAYERS}/body/closed_call/jit(searchsorted)/while"


def fusion(cycles: int) -> str:
    return f'  %fusion = f32[] fusion(%p), backend_config={{"estimated_cycles":"{cycles}"}}'


KERNEL = '  %kernel = f32[] custom-call(%p), custom_call_target="tpu_custom_call"'


def loop(number: int, body: str, scope: str) -> str:
    return "  " + LOOP.format(n=number, body=body, scope=scope)


def computation(name: str, *lines: str, entry: bool = False) -> str:
    head = f"{'ENTRY ' if entry else ''}%{name} (p: f32[]) -> f32[] {{"
    return "\n".join([head, *lines, "}"])


PROGRAM = "\n\n".join(
    [
        computation("search", fusion(1)),
        computation("layers.1", fusion(100), loop(1, "search", SEARCH)),
        computation("layers.2", fusion(200), KERNEL, KERNEL),
        computation("rung.1", fusion(10), loop(2, "layers.1", LAYERS)),
        computation("rung.2", fusion(20), KERNEL, fusion(3), loop(3, "layers.2", LAYERS)),
        computation(
            "step.0", fusion(7), loop(4, "rung.1", RUNG), loop(5, "rung.2", RUNG), fusion(6)
        ),
        computation("main", fusion(5), loop(6, "step.0", STEP), entry=True),
    ]
)


def test_the_layer_loop_counts_once_per_layer():
    cycles = read_cycles(PROGRAM, 2, 30)
    assert cycles == StepCycles(13, (10 + 30 * 101, 23 + 30 * 200), kernels=(0, 1 + 30 * 2))
    assert cycles.starts == (0, 61 * START_CYCLES)


def test_a_program_with_another_structure_has_no_estimate():
    assert read_cycles(PROGRAM, 3, 30) is None
    assert read_cycles(computation("main", fusion(5), entry=True), 2, 30) is None
    assert read_cycles("", 2, 30) is None
