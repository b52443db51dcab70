"""Blocks at scale: time, growth with the number of atoms, memory, and the ratio to networkx.

    python benchmarks/frameworks_scale.py [--size tiny|full]

Prints, measured in this run on one thread:

- blocks, kinds and block graph of the 4 x 4 x 4 supercell of S_pr (29,184 atoms);
- the same by networkx (graph of atoms, connected components, Weisfeiler-Lehman hashes, block
  graph), and the ratio;
- the exponent of time against atoms up to 10^6, and memory per atom;
- building S_sup, and the statistics of 200 seeds at block level.
"""

from __future__ import annotations

import argparse
import sys
import time
import tracemalloc
from collections import deque
from collections.abc import Callable, Sequence

import networkx as nx
import numpy as np
from threadpoolctl import threadpool_limits

from mofal.frameworks import build, disorder_statistics, find_blocks
from mofal.frameworks.bonds import IS_METAL, bonds_of, structure_arrays

SIZES = {
    "tiny": {"repeat": (1, 1, 1), "growth": (1, 2), "seeds": 3, "super": (1, 1, 1), "rounds": 1},
    "full": {
        "repeat": (4, 4, 4),
        "growth": (2, 3, 4, 6, 8, 10, 13),
        "seeds": 200,
        "super": (4, 4, 4),
        "rounds": 5,
    },
}


def timed(function: Callable[[], object], rounds: int = 1) -> tuple[float, float]:
    """Shortest processor time and wall time of some runs, s.

    On one thread of an idle core they are the same; on a busy machine only the first can be
    compared.
    """
    processor, wall = np.inf, np.inf
    for _ in range(rounds):
        start = time.process_time(), time.perf_counter()
        function()
        processor = min(processor, time.process_time() - start[0])
        wall = min(wall, time.perf_counter() - start[1])
    return processor, wall


def networkx_blocks(z: np.ndarray, x: np.ndarray, cell: np.ndarray) -> tuple[int, int, int]:
    """Blocks, kinds and links with networkx, from the same list of bonds.

    Returns
    -------
    n_blocks, n_kinds, n_links : int
    """
    bonds = bonds_of(z, x, cell, np.ones(3, bool))
    graph = nx.Graph()
    for k, element in enumerate(z.tolist()):
        graph.add_node(k, z=element, metal=bool(IS_METAL[element]))
    forward = bonds.kept(bonds.forward)
    for i, j, s in zip(forward.i.tolist(), forward.j.tolist(), forward.shift.tolist()):
        graph.add_edge(i, j, shift=s, start=i)
    cuts = []
    for k, data in graph.nodes(data=True):
        if data["z"] != 6 or graph.degree(k) != 3:
            continue
        near = list(graph.neighbors(k))
        oxygen = [o for o in near if graph.nodes[o]["z"] == 8]
        on_metal = any(graph.nodes[m]["metal"] for o in oxygen for m in graph.neighbors(o))
        rest = [o for o in near if graph.nodes[o]["z"] == 6]
        if len(oxygen) == 2 and on_metal and rest:
            cuts.append((k, rest[0]))
    graph.remove_edges_from(cuts)
    for k in graph.nodes:
        graph.nodes[k]["label"] = str(graph.nodes[k]["z"])
    owner: dict[int, int] = {}
    shift: dict[int, tuple[int, ...]] = {}
    kinds = set()
    n_blocks = 0
    for n_blocks, members in enumerate(nx.connected_components(graph), start=1):
        part = graph.subgraph(members)
        kinds.add(nx.weisfeiler_lehman_graph_hash(part, node_attr="label", iterations=4))
        root = min(members)
        shift[root] = (0, 0, 0)
        queue = deque([root])
        while queue:
            a = queue.popleft()
            owner[a] = n_blocks
            for b in part.neighbors(a):
                if b not in shift:
                    edge = part.edges[a, b]
                    sign = 1 if edge["start"] == a else -1
                    shift[b] = tuple(p + sign * q for p, q in zip(shift[a], edge["shift"]))
                    queue.append(b)
    blocks = nx.MultiGraph()
    for a, b in cuts:
        blocks.add_edge(owner[a], owner[b], atoms=(a, b))
    return n_blocks, len(kinds), blocks.number_of_edges()


def exponent(atoms: Sequence[int], seconds: Sequence[float]) -> float:
    """Slope of log time against log atoms."""
    return float(np.polyfit(np.log(atoms), np.log(seconds), 1)[0])


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Run the benchmark; return what it printed, by name."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="full")
    size = SIZES[parser.parse_args(argv).size]
    out: dict[str, float] = {}
    with threadpool_limits(1):
        ds = build("S_pr", repeat=size["repeat"])
        find_blocks(build("S_pr"))
        out["atoms"] = ds.sizes["atom"]
        out["blocks_s"], wall = timed(lambda: find_blocks(ds), size["rounds"])
        blocks = find_blocks(ds)
        z, x, cell, _ = structure_arrays(ds, 0)
        ours = (blocks.sizes["block"], int(blocks["kind"].max()) + 1, blocks.sizes["link"])
        theirs = networkx_blocks(z, x, cell)
        if ours != theirs:
            raise SystemExit(f"networkx finds {theirs} blocks, kinds and links; mofal {ours}")
        out["networkx_s"], their_wall = timed(lambda: networkx_blocks(z, x, cell))
        out["ratio"] = out["networkx_s"] / out["blocks_s"]
        print(f"{out['atoms']:.0f} atoms: {ours[0]} blocks, {ours[1]} kinds, {ours[2]} links")
        print(f"  mofal     {out['blocks_s']:8.3f} s of processor time ({wall:.3f} s wall)")
        print(f"  networkx  {out['networkx_s']:8.3f} s of processor time ({their_wall:.3f} s wall)")
        print(f"  ratio     {out['ratio']:8.0f}")

        atoms, seconds, memory = [], [], []
        for n in size["growth"]:
            large = build("S_pr", repeat=(n, n, n))
            atoms.append(large.sizes["atom"])
            rounds = 1 if atoms[-1] > 300_000 else size["rounds"]
            seconds.append(timed(lambda large=large: find_blocks(large), rounds)[0])
            tracemalloc.start()
            find_blocks(large)
            memory.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
            print(
                f"  {atoms[-1]:9d} atoms {seconds[-1]:8.3f} s  {memory[-1] / atoms[-1]:6.0f} B/atom"
            )
        # Below some 20,000 atoms what does not grow (calls, a Dataset made) weighs in.
        tail = [k for k, n in enumerate(atoms) if n > 20_000] or range(len(atoms))
        sizes = [atoms[k] for k in tail]
        out["exponent"] = exponent(sizes, [seconds[k] for k in tail])
        out["memory_exponent"] = exponent(sizes, [memory[k] for k in tail])
        print(f"  exponent of time {out['exponent']:.2f}, of memory {out['memory_exponent']:.2f}")

        out["s_sup_s"], wall = timed(lambda: build("S_sup", repeat=size["super"], seed=1))
        print(f"S_sup built in {out['s_sup_s']:.2f} s of processor time ({wall:.2f} s wall)")
        start = time.process_time()
        table = disorder_statistics(
            ds, blocks=blocks, seeds=range(size["seeds"]), hf=0.2, linker=0.2, brick=0.1
        )
        out["seeds_s"] = time.process_time() - start
        print(f"{size['seeds']} seeds at block level in {out['seeds_s']:.2f} s:")
        for name in table.data_vars:
            mean, std = float(table[name].mean()), float(table[name].std(ddof=1))
            print(f"  {name:14s} {mean:10.3f} ± {std:.3f}")
            out[str(name)] = mean
    return out


if __name__ == "__main__":
    main(sys.argv[1:])
