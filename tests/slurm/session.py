"""A person's session with a campaign on its own client, for tests: FILE DIRECTORY N THREADS."""

from __future__ import annotations

import sys

import mofal


def main(argv: list[str]) -> int:
    """Run a campaign on a local cluster of so many workers with so many threads each."""
    from distributed import Client, LocalCluster

    workers, threads = int(argv[2]), int(argv[3])
    with (
        LocalCluster(
            n_workers=workers, threads_per_worker=threads, dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
    ):
        mofal.Campaign(argv[0], directory=argv[1]).run(client=client, progress=print)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
