"""Chaos for rooms: fills pour in while bridges, RabbitMQ, Kafka and connections fail, and proof.

`python -m tests.rooms_chaos` runs seeds; `tests/test_rooms_chaos.py` runs a short one. A run is a
feed of fills (`fills`), two real bridges, each behind a TCP proxy of its own (`proxy`), a plan of
what is done to them and to the servers (`mischief`), and all rooms read from their first message by
a client that the bridge does not use (`rooms`), compared with what a naive reference says must be
in them (`expected`, `verify`). No code of `chat_bridge` is used.
"""
