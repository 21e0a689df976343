"""FedAvg of vectors: client ``i`` moves half of the way to ``i``, and weighs ``i + 1`` examples."""

import json
import os
import sys
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

client_app = ClientApp()
server_app = ServerApp()
calls_in_this_process = 0


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """Train; the partition of the option ``failing`` fails in the way of the option ``failure`` instead."""
    global calls_in_this_process
    calls_in_this_process += 1
    partition = int(context.node_config["partition-id"])
    calls = context.state["calls"]["calls"] + 1 if "calls" in context.state else 1
    context.state["calls"] = MetricRecord({"calls": calls})
    if partition == context.run_config["failing"]:
        if context.run_config["failure"] == "sys.exit":
            sys.exit("the client has enough")
        raise ValueError("the client\nfailed")
    vector = message.content["arrays"]["vector"].numpy()
    arrays = ArrayRecord({"vector": Array(vector + (partition - vector) / 2)})
    metrics = MetricRecord({"num-examples": partition + 1, "calls": calls})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


@client_app.query()
def query(message: Message, context: Context) -> Message:
    """Tell about the process that the client runs in."""
    facts = ConfigRecord(
        {
            "process": os.getpid(),
            "calls": calls_in_this_process,
            "threads": os.environ.get("OMP_NUM_THREADS", ""),
            "telemetry": os.environ.get("FLWR_TELEMETRY_ENABLED", ""),
            "rounds": context.run_config["rounds"],
            "partition": context.node_config["partition-id"],
            "partitions": context.node_config["num-partitions"],
        }
    )
    return Message(RecordDict({"facts": facts}), reply_to=message)


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """Run FedAvg, then leave the result in the context's state and in the file of the option ``output``."""
    if context.run_config["failure"] == "server":
        raise ValueError("the server failed")
    strategy = FedAvg(fraction_evaluate=0.0)
    start = ArrayRecord({"vector": Array(np.zeros(3))})
    result = strategy.start(grid=grid, initial_arrays=start, num_rounds=int(context.run_config["rounds"]))
    context.state["arrays"] = result.arrays
    context.state["metrics"] = result.train_metrics_clientapp[int(context.run_config["rounds"])]
    if output := str(context.run_config["output"]):
        vector = result.arrays["vector"].numpy().tolist()
        Path(output).write_text(json.dumps({"vector": vector, "clients": context.run_config["data.clients"]}))
