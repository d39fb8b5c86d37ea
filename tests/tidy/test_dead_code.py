from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# Called by frameworks, never by name.
CALLED_FROM_OUTSIDE = ",".join(
    [
        "forward,backward,setup_context,format_help,error,on_*,eof_received,stream_response",
        "tokenizer_name,loglikelihood_rolling,generate_until,apply_chat_template,chat_template",
    ]
)


def test_nothing_is_defined_and_never_used(root: Path) -> None:
    done = subprocess.run(
        [
            sys.executable, "-m", "vulture", "src", "tests", "benchmarks",
            "--ignore-names", CALLED_FROM_OUTSIDE, "--ignore-decorators", "@override",
        ],
        cwd=root, capture_output=True, text=True, check=False,
    )  # fmt: skip
    # Fields of records are read by name from files, which no reader of the code can see.
    found = [line for line in done.stdout.splitlines() if line.startswith("src/")]
    assert [line for line in found if "variable" not in line and "attribute" not in line] == []
