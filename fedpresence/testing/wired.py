"""`python -m fedpresence.testing.wired WIRE_FILE -c FILE`: a daemon that writes down what it sends.

For demonstrations and tests alone: the file has every transaction with its content, status messages and
all, one JSON object a line: `{"from", "to", "txn_id", "sent_ms", "answered_ms", "status", "body"}`. An
operator's daemon has no such option.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from fedpresence.config import load_config
from fedpresence.errors import ConfigError
from fedpresence.ops.keys import load_signing_keys
from fedpresence.process import WRONG_CONFIG, run


def main() -> int:
    """Run the daemon; its exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("wire_file", type=Path)
    parser.add_argument("-c", "--config", type=Path, required=True)
    parser.add_argument("--ready-file", type=Path)
    arguments = parser.parse_args()
    try:
        config = load_config(arguments.config, os.environ, check_signing_key=load_signing_keys)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return WRONG_CONFIG
    with arguments.wire_file.open("a", encoding="utf-8", buffering=1) as wire:

        def write(seen: Any) -> None:
            line = {
                "from": config.server_name,
                "to": seen.destination,
                "txn_id": seen.txn_id,
                "sent_ms": seen.sent_ms,
                "answered_ms": seen.answered_ms,
                "status": seen.status,
                "body": json.loads(seen.body),
            }
            wire.write(json.dumps(line, ensure_ascii=False) + "\n")

        return run(config, arguments.config, ready_file=arguments.ready_file, wire_log=write)


if __name__ == "__main__":
    sys.exit(main())
