#!/usr/bin/env python
"""How fast, and in how much memory, does `tinyq.quantize_tensor` turn float32 weights into int8 codes?

    python benchmarks/quantize_pass.py [--quick] [--threads N] [--rounds N] [--json FILE]

All candidates run in turn in one process, A B C A B C ..., so that a busy moment hits all alike. A figure is the median over the rounds,
with the slowest and the fastest behind it. GB/s count the float32 weights read, once, whatever else a candidate reads or writes.
"x copy" compares with a plain copy, `x.clone()`, which needs fresh memory for its result as every candidate does: the median of the
ratios round by round, or, for the slow ones that sit some rounds out, the ratio of the medians.

Peak memory is the resident high-water mark of a fresh process for each candidate, after one call minus before it: everything that the
operating system had to hand out on top of the weight. The result itself is part of it and is printed beside it.

Nothing is asserted: these are measurements.
"""
import argparse, json, os, platform, statistics, subprocess, sys, time, warnings
import torch
from tinyq.per_group import quantize_tensor

SHAPES = {"4096x4096": (4096, 4096), "151936x1536": (151936, 1536)}
QUICK = {"1024x1024": (1024, 1024), "9496x1536": (9496, 1536)}

def loop_over_rows(rows):
    "The loop that many tutorials begin with: pick one row after the other, take its largest magnitude, then divide the whole weight."
    scale = torch.zeros(rows.shape[0])
    for i in range(rows.shape[0]): scale[i] = rows.select(0, i).abs().max() / 127
    return (rows / scale[:, None]).round().clamp(-128, 127).to(torch.int8), scale

def torch_per_channel(rows):
    "torch's own: scales by one reduction, codes by `torch.quantize_per_channel` (deprecated, and says so)."
    scale = rows.abs().amax(1) / 127
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_channel(rows, scale, torch.zeros(len(rows), dtype=torch.long), 0, torch.qint8)

def int8_copy(x): return torch.empty(x.shape, dtype=torch.int8).copy_(x)

CANDIDATES = { # name -> (function of the weight, rounds at most or None)
    "copy fp32 -> fp32 (clone)": (torch.clone, None),
    "copy fp32 -> int8 (copy_)": (int8_copy, None),
    "quantize_tensor, channel": (lambda x: quantize_tensor(x, "w8a16"), None),
    "quantize_tensor, g128": (lambda x: quantize_tensor(x, "w8a16-g128"), None),
    "loop over the rows, channel": (loop_over_rows, 3),
    "loop over the rows, g128": (lambda x: loop_over_rows(x.view(-1, 128)), 1),
    "torch per channel, channel": (torch_per_channel, 3),
    "torch per channel, g128": (lambda x: torch_per_channel(x.view(-1, 128)), 3),
}
BASE = next(iter(CANDIDATES))

def weight(shape): return torch.randn(shape, generator=torch.Generator().manual_seed(0))

def hardware():
    model = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as f: model = next((l.split(":", 1)[1].strip() for l in f if l.startswith("model name")), model)
    return {"cpu": model, "cores": os.cpu_count(), "capability": torch.backends.cpu.get_cpu_capability(), "threads": torch.get_num_threads(),
            "torch": torch.__version__, "python": platform.python_version(), "system": platform.system()}

def high_water():
    "Largest resident size of this process so far, in bytes."
    if os.path.exists("/proc/self/status"):
        with open("/proc/self/status") as f: return next(int(l.split()[1]) << 10 for l in f if l.startswith("VmHWM"))
    import resource
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10

def buffers(result):
    "Bytes of the tensors in a result."
    if isinstance(result, tuple): return sum(map(buffers, result))
    return result.nbytes if not isinstance(result, torch.Tensor) else result.numel() * result.element_size()

def probe(name, shape):
    "Run in a fresh process: what one call of a candidate takes on top of the weight."
    run = CANDIDATES[name][0]
    run(torch.randn(8, 256)) # loads and builds what the first call needs
    x = weight(shape)
    before = high_water()
    result = run(x)
    return {"peak": max(0, high_water() - before), "result": buffers(result)}

def memory(name, shape, threads):
    out = subprocess.run([sys.executable, os.path.abspath(__file__), "--probe", name, json.dumps(shape), "--threads", str(threads)],
                         capture_output=True, text=True, check=True).stdout
    return json.loads(out.splitlines()[-1])

def timings(shape, rounds):
    x = weight(shape)
    took = {name: [] for name in CANDIDATES}
    for run, most in CANDIDATES.values():
        if most is None: run(x) # once to warm up
    for i in range(rounds):
        for name, (run, most) in CANDIDATES.items():
            if most is not None and i >= most: continue
            start = time.perf_counter()
            result = run(x)
            took[name].append(time.perf_counter() - start)
            del result
    return took

def report(took, nbytes):
    rows = {}
    for name, ts in took.items():
        rates = [nbytes / 1e9 / t for t in ts]
        ratios = [a / b for a, b in zip(took[BASE], ts)] if len(ts) == len(took[BASE]) else [statistics.median(took[BASE]) / statistics.median(ts)]
        rows[name] = {"rounds": len(ts), "median_gb_s": statistics.median(rates), "min_gb_s": min(rates), "max_gb_s": max(rates),
                      "ratio_to_copy": statistics.median(ratios), "seconds": ts}
    return rows

def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--quick", action="store_true", help="small weights, few rounds")
    p.add_argument("--threads", type=int, help="torch threads; torch's own choice by default")
    p.add_argument("--rounds", type=int, help="rounds; 9, or 3 with --quick")
    p.add_argument("--json", metavar="FILE", help="write all figures there too")
    p.add_argument("--probe", nargs=2, help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.threads: torch.set_num_threads(a.threads)
    if a.probe: return print(json.dumps(probe(a.probe[0], json.loads(a.probe[1]))))
    rounds, hw = a.rounds or (3 if a.quick else 9), hardware()
    print(f"{hw['cpu']}, {hw['cores']} cores, {hw['capability']}; torch {hw['torch']}, {hw['threads']} thread(s)")
    done = {"hardware": hw, "shapes": {}}
    for label, shape in (QUICK if a.quick else SHAPES).items():
        nbytes = 4 * shape[0] * shape[1]
        peaks = {name: memory(name, shape, hw["threads"]) for name in CANDIDATES}
        rows = report(timings(shape, rounds), nbytes)
        done["shapes"][label] = {n: rows[n] | peaks[n] for n in rows}
        print(f"\n{label}: {nbytes / 2**20:.0f} MiB of float32\n{'':31} {'GB/s':>6} {'(min - max)':>15} {'rounds':>6} {'x copy':>7} {'peak MiB':>9} {'result':>7} {'beyond it':>9}")
        for n, r in done["shapes"][label].items():
            print(f"{n:31} {r['median_gb_s']:6.2f} {'(%.2f - %.2f)' % (r['min_gb_s'], r['max_gb_s']):>15} {r['rounds']:6} {r['ratio_to_copy']:7.2f} "
                  f"{r['peak'] / 2**20:9.1f} {r['result'] / 2**20:7.1f} {(r['peak'] - r['result']) / 2**20:9.1f}")
    if a.json:
        with open(a.json, "w") as f: json.dump(done, f, indent=1)

if __name__ == "__main__": main()
