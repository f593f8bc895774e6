"""The chat bridge: follows `fills` and posts each trade and fill into its room in RabbitMQ.

A pure core (`messages`, `names`, `text`) and thin shells around it. One fill's way: `source` reads
its record from Kafka, `identity` folds it and asks `messages` what to say, `survey` has read what
the room holds of it already, `poster` publishes the rest with confirms, and `session` then settles
the state and commits the offset, in this order. `bridge` runs sessions, one after the other.

For people: `access` says who may read and talk, `speech` talks, `history` and `listing` read.
"""
