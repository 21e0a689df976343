"""Records that Flower reads and sends as its own."""

from __future__ import annotations

import torch
from flwr.app import ArrayRecord
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_type_from_object_content
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from clients.arrays import to_record, to_tensors

STATE = {
    "scalar": torch.tensor(2.0),
    "weight": torch.arange(24.0).view(2, 3, 4).permute(2, 0, 1),
    "none": torch.ones(0),
}


def test_a_record_survives_the_wire_of_a_deployment() -> None:
    record = to_record(STATE)
    contents = {name: item.deflate() for name, item in get_all_nested_objects(record).items()}
    types = {get_object_type_from_object_content(content) for content in contents.values()}
    assert types == {"ArrayRecord", "Array", "ArrayChunk"}  # a SuperNode sends no others
    found = to_tensors(inflate_object_from_contents(record.object_id, contents))
    assert all(torch.equal(found[name], tensor) for name, tensor in STATE.items())


def test_a_record_is_what_flower_writes() -> None:
    assert to_record(STATE).object_id == ArrayRecord(dict(STATE)).object_id
