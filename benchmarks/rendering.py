"""Measure how many pairs per second `edm_hloc.synthetic` renders, on a CPU or a GPU.

Pairs of scenes (`PairSampler`) and of reliefs (`ReliefSampler`) are measured in turn.
"""

from __future__ import annotations

import argparse
import itertools
import time
from pathlib import Path

import torch

from edm_hloc.synthetic.pairs import PairSampler
from edm_hloc.synthetic.relief_pairs import ReliefSampler
from edm_hloc.synthetic.textures import TextureBank

Sampler = PairSampler | ReliefSampler


def measure(sampler: Sampler, batch: int, size: int, seconds: float) -> tuple[float, float]:
    """Render for about `seconds`, after a batch to warm up.

    Returns:
        Pairs per second, and milliseconds of CPU time per pair.
    """
    sampler.sample(batch, size, size)
    _finish(sampler)
    start, cpu_start, count = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - start < seconds:
        sampler.sample(batch, size, size)
        _finish(sampler)
        count += batch
    rate = count / (time.perf_counter() - start)
    return rate, 1000 * (time.process_time() - cpu_start) / count


def _finish(sampler: Sampler) -> None:
    if sampler.textures.device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--sizes", type=int, nargs="+", default=[192, 256])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="CPU threads to try")
    parser.add_argument("--batch", type=int, help="pairs at a time; default: CPU 16, GPU 128")
    parser.add_argument("--textures", type=Path, help="pack of textures; default: procedural")
    parser.add_argument("--difficulty", type=float, default=0.5)
    parser.add_argument("--seconds", type=float, default=10)
    args = parser.parse_args()
    bank = TextureBank.load(args.textures) if args.textures else TextureBank.procedural(32)
    samplers: dict[str, Sampler] = {
        "scenes": PairSampler(bank, args.difficulty, args.device),
        "reliefs": ReliefSampler(bank, args.difficulty, args.device),
    }
    on_cpu = torch.device(args.device).type == "cpu"
    batch = args.batch or (16 if on_cpu else 128)
    for threads in args.threads if on_cpu else [1]:
        torch.set_num_threads(threads)
        for size, (kind, sampler) in itertools.product(args.sizes, samplers.items()):
            rate, cpu = measure(sampler, batch, size, args.seconds)
            where = f"{threads} CPU thread(s)" if on_cpu else torch.cuda.get_device_name()
            print(
                f"{kind}, {size}×{size}, batch {batch}, {where}: {rate:.1f} pairs per second, "
                f"{cpu:.1f} ms of CPU time per pair",
                flush=True,
            )


if __name__ == "__main__":
    main()
