"""The chat bridge: follows `fills` and posts each trade and fill into its room in RabbitMQ.

A pure core (`messages`, `names`, `text`) and thin shells around it. One fill's way: `source` reads
its record from Kafka, `identity` folds it and asks `messages` what to say, `poster` publishes that
with confirms, and `bridge` then settles the state and commits the offset, in this order.
"""
