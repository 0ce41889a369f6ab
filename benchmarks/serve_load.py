"""Load on a server: more clients than slots, of which some leave, cancel or send nonsense.

python -m benchmarks.serve_load --seconds 600 --output benchmarks/results/serve_load.json

Each answer is compared with that of the same model without a server. At the end the server is
killed under load, and started again at the same port. Linux only: memory is read from /proc.
"""

import argparse
import asyncio
import multiprocessing
import re
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import httpx2

from benchmarks.common import describe, machine, say, write_json
from benchmarks.load_clients import Clients, Seen
from benchmarks.load_requests import Ask, Wanted, answers, asks
from emsjax.cli.markdown import table

_EVERY = 10.0  # seconds between two looks at the memory
KILLED_AFTER = 5.0  # seconds of load; as many are put on the server that is started again


class Server:
    """A server in a process of its own.

    Attributes:
      address: of the server.
      said: what it wrote to standard error after it had started.
    """

    def __init__(self, flags: list[str], port: int):
        """Starts it, and returns once it takes requests."""
        command = [sys.executable, "-m", "emsjax.serve", "--port", str(port), *flags]
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self._process.stderr is not None
        for line in self._process.stderr:
            if line.startswith("serving "):
                break
        else:
            raise SystemExit("the server did not start")
        found = re.search(r"http://[^ ]*(?=/v1)", line)
        assert found is not None
        self.address, self.said = found[0], list[str]()
        self._listening = threading.Thread(target=self._listen)
        self._listening.start()

    def _listen(self) -> None:
        with self._process.stderr or nullcontext(()) as lines:
            self.said.extend(lines)

    def memory(self) -> float:
        """Returns the resident memory in MiB."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024

    def files(self) -> int:
        """Returns the number of open files, connections included."""
        return len(list(Path(f"/proc/{self._process.pid}/fd").iterdir()))

    def figures(self) -> dict[str, float]:
        """Returns the sums at `/metrics` by name."""
        found: dict[str, float] = {}
        for line in httpx2.get(f"{self.address}/metrics").text.splitlines():
            if not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                name = name.partition("{")[0].removeprefix("vllm:")
                found[name] = found.get(name, 0) + float(value)
        return found

    def end(self, how: signal.Signals) -> int:
        """Sends a signal and returns the exit status."""
        self._process.send_signal(how)
        status = self._process.wait(60)
        self._listening.join()
        return status


def main() -> None:
    """Measures, prints a Markdown table and writes JSON."""
    options = _options()
    facts = machine()
    engine = {"model": options.model, "max_batch_size": options.slots, "exact": options.exact}
    engine |= {"max_model_len": options.max_model_len}
    pool = asks(options.requests)
    # In a process of its own, whose memory is free before the server starts.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        wanted = process.submit(answers, engine, pool).result()
    say(f"{len(pool)} answers without a server; {sum(len(w.ties) for w in wanted)} tied tokens")
    flags = ["--batch-size", str(options.slots), "--max-model-len", str(options.max_model_len)]
    flags += ["--model", options.model] if options.model else []
    flags += ["--exact"] if options.exact else []
    results = asyncio.run(_measure(options, flags, pool, wanted))
    settings = vars(options) | {"output": options.output.name}
    settings["model"] = Path(options.model).name if options.model else "default"
    content = {"benchmark": "serve_load", "machine": facts, "settings": settings}
    write_json(options.output, content | results)
    print(_report(results, facts))
    if results["problems"]:
        raise SystemExit("there were problems:\n" + "\n".join(results["problems"][:20]))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--clients-per-slot", type=int, default=4)
    parser.add_argument("--requests", type=int, default=48, help="different requests")
    parser.add_argument("--model", help="as for emsjax.serve; default: the default model")
    parser.add_argument("--max-model-len", type=int, default=1024)
    parser.add_argument("--exact", action="store_true", help="answers must be equal to the letter")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/serve_load.json"))
    return parser.parse_args()


async def _measure(
    options: argparse.Namespace, flags: list[str], pool: list[Ask], wanted: list[Wanted]
) -> dict[str, Any]:
    """Returns the results of the load, and of killing the server under it."""
    count = options.slots * options.clients_per_slot
    server = Server(flags, _free_port())
    try:
        loaded = await _load(server, Clients(server.address, pool, wanted), count, options.seconds)
        loaded |= await _kill(server, flags, Clients(server.address, pool, wanted), count)
    except BaseException:
        server.end(signal.SIGKILL)
        raise
    return loaded


async def _load(server: Server, clients: Clients, count: int, seconds: float) -> dict[str, Any]:
    """Puts load on a server for some time, once it has answered everything."""
    await clients.ask_all()
    before = server.figures()
    began = time.perf_counter()
    running = asyncio.ensure_future(clients.run(count))
    memory: list[tuple[float, float]] = []
    while (passed := time.perf_counter() - began) < seconds and not running.done():
        memory.append((round(passed, 1), round(server.memory(), 1)))
        problems = clients.seen.problems
        say(f"{passed:.0f} s, {memory[-1][1]:.0f} MiB, {dict(clients.seen.did)}, {problems[-1:]}")
        await asyncio.sleep(min(_EVERY, seconds - passed))
    clients.stopping = True
    await running
    figures = await _quiet(server)
    gained = {name: value - before.get(name, 0) for name, value in figures.items()}
    seen = clients.seen
    lasted = time.perf_counter() - began
    memory.append((round(lasted, 1), round(server.memory(), 1)))
    problems = list(seen.problems)
    problems += [line for line in server.said if "rror" in line or "Traceback" in line]
    if figures["num_requests_running"] or figures["num_requests_waiting"]:
        problems.append("slots are still taken after all clients have left")
    return {
        "seconds": lasted,
        "clients": count,
        "did": dict(sorted(seen.did.items())),
        "latency_s": _latencies(seen),
        "generated_tokens_per_s": gained["generation_tokens_total"] / lasted,
        "prompt_tokens": gained["prompt_tokens_total"],
        "prompt_tokens_not_read_again": gained["prefix_cache_hits_total"],
        "memory_mib": memory,
        "open_files_at_the_end": server.files(),
        "problems": problems,
    }


async def _quiet(server: Server) -> dict[str, float]:
    """Waits until nobody's request is in a slot, for a minute at most; returns the figures."""
    for _ in range(60):
        figures = server.figures()
        if not figures["num_requests_running"] + figures["num_requests_waiting"]:
            break
        await asyncio.sleep(1)
    return figures


async def _kill(server: Server, flags: list[str], clients: Clients, count: int) -> dict[str, Any]:
    """Kills a server under load; each client must notice. Starts it again, and asks it."""
    running = asyncio.ensure_future(clients.run(count))
    await asyncio.sleep(KILLED_AFTER)
    clients.losing = True
    server.end(signal.SIGKILL)
    killed = time.perf_counter()
    await running
    noticed = time.perf_counter() - killed
    lost = sum(n for what, n in clients.seen.did.items() if what.endswith("no connection"))
    port = int(server.address.rpartition(":")[2])
    again = Server(flags, port)
    try:
        after = Clients(again.address, clients.asks, clients.wanted)
        running = asyncio.ensure_future(after.run(4))
        await asyncio.sleep(KILLED_AFTER)
        after.stopping = True
        await running
    finally:
        status = again.end(signal.SIGTERM)
    equal = sum(n for what, n in after.seen.did.items() if what.endswith((": equal", ": tied")))
    return {
        "killed": {
            "connections_lost": lost,
            "seconds_until_all_noticed": noticed,
            "answers_after_restart": equal,
            "exit_status": status,
            "problems": clients.seen.problems + after.seen.problems,
        }
    }


def _latencies(seen: Seen) -> dict[str, dict[str, float]]:
    """Returns the median and the 99th percentile of each."""
    found = {}
    for name in ("first", "between", "per_token"):
        values = sorted(getattr(seen, name))
        if len(values) > 1:
            cuts = statistics.quantiles(values, n=100, method="inclusive")
            found[name] = {"count": len(values), "p50": cuts[49], "p99": cuts[98]}
    return found


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _report(results: dict[str, Any], facts: dict[str, Any]) -> str:
    names = {
        "first": "first text of a stream",
        "between": "between two pieces of text",
        "per_token": "for each further token of a stream",
    }
    rows = [
        [names[name], str(each["count"]), f"{each['p50']:.3f}", f"{each['p99']:.3f}"]
        for name, each in results["latency_s"].items()
    ]
    memory = results["memory_mib"]
    did = ", ".join(f"{what} {count}" for what, count in results["did"].items())
    lines = [
        f"{results['clients']} clients for {results['seconds']:.0f} s: {did}.",
        table(("seconds", "number", "p50", "p99"), rows),
        f"{results['generated_tokens_per_s']:.1f} tokens/s in finished requests. Memory: "
        f"{memory[0][1]:.0f} MiB at the start, {memory[len(memory) // 2][1]:.0f} half-way, "
        f"{memory[-1][1]:.0f} at the end.",
        f"After kill -9: {results['killed']}",
        describe(facts),
    ]
    return "\n\n".join(lines)


if __name__ == "__main__":
    main()
