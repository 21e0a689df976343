"""FedAvg of vectors: client ``i`` moves half of the way to ``i``, and weighs ``i + 1`` examples."""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

client_app = ClientApp()
server_app = ServerApp()
cache: list[int] = []


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """Train, and count the calls; the partition of the option ``failing`` calls ``sys.exit`` instead."""
    partition = int(context.node_config["partition-id"])
    calls = calls_of(context) + 1
    context.state["calls"] = MetricRecord({"calls": calls})
    cache.append(partition)
    if partition == context.run_config["failing"]:
        sys.exit("enough\nof this")
    vector = message.content["arrays"]["vector"].numpy()
    arrays = ArrayRecord({"vector": Array(vector + (partition - vector) / 2)})
    metrics = MetricRecord({"num-examples": partition + 1, "calls": calls})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


@client_app.query()
def query(message: Message, context: Context) -> Message:
    """Tell what the client knows about itself and its process."""
    about = {
        **context.node_config,
        "calls": calls_of(context),
        "clients": context.run_config["data.clients"],
        "process": os.getpid(),
        "cached": list(cache),
        "threads": os.environ.get("OMP_NUM_THREADS", ""),
        "telemetry": os.environ.get("FLWR_TELEMETRY_ENABLED", ""),
    }
    return Message(RecordDict({"about": ConfigRecord(about)}), reply_to=message)


@client_app.query("fail")
def fail(message: Message, context: Context) -> Message:
    """Raise."""
    raise ValueError("the client\nfailed")


def calls_of(context: Context) -> int:
    """Read how often the client has trained."""
    return int(context.state["calls"]["calls"]) if "calls" in context.state else 0


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """Run FedAvg, ask every client about itself, and leave what came out in the context's state and in a file."""
    if context.run_config["failing"] == "server":
        raise ValueError("the server failed")
    clients, rounds = int(context.run_config["data.clients"]), int(context.run_config["rounds"])
    while len(list(grid.get_node_ids())) < clients:
        time.sleep(0.1)  # under `flwr run` the ServerApp starts before the nodes; FedAvg would sample from some of them
    strategy = FedAvg(fraction_evaluate=0.0)
    start = ArrayRecord({"vector": Array(np.zeros(3))})
    result = strategy.start(grid=grid, initial_arrays=start, num_rounds=rounds)
    context.state["arrays"] = result.arrays
    context.state["metrics"] = result.train_metrics_clientapp[rounds]
    for reply in ask(grid, "query"):
        context.state[f"about-{reply.content['about']['partition-id']}"] = reply.content["about"]
    reasons = [reply.error.reason or "" for reply in ask(grid, "query.fail")]
    context.state["reasons"] = ConfigRecord({"reasons": reasons})
    if output := str(context.run_config["output"]):
        vector = result.arrays["vector"].numpy().tolist()
        Path(output).write_text(json.dumps({"vector": vector, "clients": clients}))


def ask(grid: Grid, message_type: str) -> list[Message]:
    """Send an empty message to every client."""
    return list(grid.send_and_receive([Message(RecordDict(), node, message_type) for node in grid.get_node_ids()]))
