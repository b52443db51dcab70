"""Runs commands of mofal, each in a fork of one process that has imported everything already.

`python -m tests.attacks.nursery MODULE ...` reads a JSON object per line and answers with one:
``{"argv": [...], "environment": {...}, "log": path, "timeout": s}`` runs `mofal ARGV`;
``{"call": "module:function", "arguments": [...], ...}`` calls a function, whose result comes back.
With ``"learn": path`` it writes there which modules the fork has imported; ``{"import": path}``
imports them here, so that later forks need not.
Started with the shim (`faults.c`) before it, each fork meets the faults of its own environment.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any


def run_child(order: dict[str, Any], answer: int) -> None:
    """Never returns."""
    status = 1
    try:
        os.setsid()
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ.update(order.get("environment", {}))
        arm = getattr(ctypes.CDLL(None), "fault_arm", None)
        if arm is not None:
            arm()
        if "call" in order:
            module, _, name = order["call"].partition(":")
            result = getattr(importlib.import_module(module), name)(*order["arguments"])
            os.write(answer, json.dumps(result).encode())
            status = 0
        else:
            from mofal import cli
            from mofal.commands import report

            # Pictures of what is compared anyhow are left out.
            report.report = lambda *_, **__: "none"  # type: ignore[assignment]
            status = cli.main(order["argv"])
            if "learn" in order:
                names = sorted(set(sys.modules) - {"__main__"})
                Path(order["learn"]).write_text(json.dumps(names))
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def serve() -> None:
    """Until the input ends."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for name in sys.argv[1:]:
        importlib.import_module(name)
    out.write('{"ready": true}\n')
    out.flush()
    for line in sys.stdin:
        order = json.loads(line)
        if "import" in order:
            for name in json.loads(Path(order["import"]).read_text()):
                with contextlib.suppress(Exception):
                    importlib.import_module(name)
            out.write("{}\n")
            out.flush()
            continue
        reader, writer = os.pipe()
        began = time.monotonic()
        pid = os.fork()
        if pid == 0:
            os.close(reader)
            run_child(order, writer)
        os.close(writer)
        deadline = began + order.get("timeout", 300)
        status = None
        while status is None:
            found, code = os.waitpid(pid, os.WNOHANG)
            if found:
                status = os.waitstatus_to_exitcode(code)
            elif time.monotonic() > deadline:
                os.killpg(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                status = -999
            else:
                time.sleep(0.01)
        with os.fdopen(reader, "rb") as stream:
            text = stream.read() if "call" in order else b""
        facts = {"status": status, "seconds": time.monotonic() - began}
        if text:
            facts["result"] = json.loads(text)
        out.write(json.dumps(facts) + "\n")
        out.flush()


if __name__ == "__main__":
    serve()
