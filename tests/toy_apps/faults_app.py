"""Clients of which two fail in the first round: partition 0 ends its process, partition 1 hangs."""

import json
import os
import time
from pathlib import Path

from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

client_app = ClientApp()
server_app = ServerApp()


@client_app.query()
def query(message: Message, context: Context) -> Message:
    """Count the calls, and in the first round misbehave."""
    partition = int(context.node_config["partition-id"])
    calls = int(context.state["calls"]["n"]) if "calls" in context.state else 0
    context.state["calls"] = MetricRecord({"n": calls + 1})
    if message.metadata.group_id == "1" and partition == 0:
        os._exit(3)
    if message.metadata.group_id == "1" and partition == 1:
        time.sleep(1000)
    return Message(RecordDict({"calls": MetricRecord({"n": calls + 1, "partition": partition})}), reply_to=message)


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """Ask everybody three times, the first a warm-up, and write down who answered what."""
    rounds = []
    for number, timeout in enumerate(context.run_config["timeouts"].split()):
        messages = [Message(RecordDict(), node, "query", group_id=str(number)) for node in sorted(grid.get_node_ids())]
        replies = list(grid.send_and_receive(messages, timeout=float(timeout)))
        answers = [reply.content["calls"] for reply in replies if reply.has_content()]
        reasons = sorted(reply.error.reason or "" for reply in replies if reply.has_error())
        rounds.append({"calls": {int(a["partition"]): int(a["n"]) for a in answers}, "reasons": reasons})
    Path(context.run_config["output"]).write_text(json.dumps(rounds))
