#!/bin/bash
# make run: set-up, Kafka where it can be had and no other place was named, then the pipeline.
set -euo pipefail
cd "$(dirname "$0")/.."
config/setup.sh
if [[ " $*" != *" --to"* ]]; then
    if kafka=$(.venv/bin/python config/kafka/broker.py start --otherwise "this run writes to the local log instead"); then
        echo "Kafka is at $kafka and stays there until: make kafka-stop" >&2
        set -- --to "kafka://$kafka" "$@"
    fi
fi
exec .venv/bin/python config/foreground.py .venv/bin/promissory run "$@"
