"""The worker process behind `symbolic`: reads [answer, gold] as JSON lines, writes true or false.

A script of its own, so that a fresh interpreter starts without importing the package or the user's main module.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import sys

__all__ = ["ORPHAN_LIMIT_S", "serve"]

ORPHAN_LIMIT_S = 60.0
"""After this long on one comparison the worker ends itself: only a worker whose parent was killed gets that far."""


def serve() -> None:
    """Answer comparisons until standard input ends."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    def expression(text: str) -> list[object]:
        # The parent owns the limit; math-verify's own needs SIGALRM and does not stop every hang.
        forms = [LatexExtractionConfig(), ExprExtractionConfig()]
        parsed: list[object] = parse(f"${text}$", extraction_config=forms, parsing_timeout=None)
        return parsed

    logging.disable(logging.CRITICAL)
    print("ready", flush=True)
    with open(os.devnull, "w") as nowhere:
        for line in sys.stdin:
            answer, gold = json.loads(line)
            # A watchdog in C: sympy can hang inside one arithmetic operation that never gives Python a turn.
            faulthandler.dump_traceback_later(ORPHAN_LIMIT_S, exit=True, file=nowhere)
            equal = bool(verify(expression(gold), expression(answer), timeout_seconds=None))
            faulthandler.cancel_dump_traceback_later()
            print(json.dumps(equal), flush=True)


if __name__ == "__main__":
    serve()
