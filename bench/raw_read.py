"""The limit: librdkafka reads topics to their end and does nothing with the records.

    python bench/raw_read.py BOOTSTRAP PARTITIONS RECORDS CHECKED TOPIC…

CHECKED is 1 to have the check sums of batches compared, as every reader of the ledger has, else 0.
Prints the seconds from the first records in hand to the last.
"""

from __future__ import annotations

import sys
import time

from confluent_kafka import Consumer, TopicPartition


def main(bootstrap: str, partitions: int, count: int, is_checked: bool, topics: list[str]) -> float:
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": "bench-raw",
            "enable.auto.commit": False,
            "queued.max.messages.kbytes": 200_000,
            "queued.min.messages": 200_000,
            # The default of a second parks a partition each time the queue fills.
            "fetch.queue.backoff.ms": 5,
            "check.crcs": is_checked,
        }
    )
    consumer.assign(
        [TopicPartition(topic, number, 0) for topic in topics for number in range(partitions)]
    )
    got, started = 0, 0.0
    while got < count:
        batch = consumer.consume(10_000, 1.0)
        if batch and not started:
            started = time.perf_counter()
        for message in batch:
            assert message.error() is None, message.error()
            message.value()
        got += len(batch)
    seconds = time.perf_counter() - started
    consumer.close()
    return seconds


if __name__ == "__main__":
    _, bootstrap, partitions, count, checked, *topics = sys.argv
    print(main(bootstrap, int(partitions), int(count), checked == "1", topics))
