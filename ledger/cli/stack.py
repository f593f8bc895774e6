"""The commands about the local stack: `up`, `down`, `status`."""

from __future__ import annotations

from ledger import console, stack
from ledger.cli.shared import AsJson
from ledger.settings import load_settings, mask_url


def up(as_json: AsJson = False) -> None:
    """Start a Kafka broker and a RabbitMQ on this machine, unless the settings name running ones.

    Their data stays in the state directory. What runs already is left alone.
    """
    found = stack.up(load_settings(), console.say)
    servers = {
        "kafka": found.kafka,
        "amqp": mask_url(found.amqp),
        "management": found.management,
    }
    if as_json:
        console.print_json(servers)
    else:
        console.print_table(
            "Stack", ("server", "where"), ((k, v or "") for k, v in servers.items())
        )


def down(as_json: AsJson = False) -> None:
    """Stop the local stack; its data stays. Servers named in the settings are not touched."""
    stopped = stack.down(load_settings(), console.say)
    if as_json:
        console.print_json({"stopped": stopped})
    else:
        what = ", ".join(stopped)
        console.out.print(f"Stopped {what}." if stopped else "Nothing of the local stack ran.")


def status(as_json: AsJson = False) -> None:
    """Show which servers answer, and the settings; nothing is started or changed."""
    found = stack.status(load_settings())
    if as_json:
        console.print_json(found.as_json())
        return
    rows = [
        ("Kafka", _state(found.kafka.up), found.kafka.url or "never started"),
        ("RabbitMQ", _state(found.amqp.up), found.amqp.url or "never started"),
    ]
    if found.amqp.management:
        rows.append(("RabbitMQ's page", "", found.amqp.management))
    console.print_table("Servers", ("server", "state", "where"), rows)
    settings = ((name, "" if value is None else value) for name, value in found.settings.items())
    console.print_table("Settings", ("setting", "value"), settings)


def _state(is_up: bool) -> str:
    return "up" if is_up else "down"
