"""One row of each round, for templates that show the reasoning of the last round only."""

import msgspec

from hf_bridge.data.row import Row


def rounds(row: Row) -> list[Row]:
    """Rows that end where an answer does before the next user message, each trained on its last round only.

    Read together they train on every answer of `row` once, in the form that it has when the model gives it.
    """
    messages = row.messages
    ends = [n for n in range(1, len(messages)) if messages[n].role == "user" and messages[n - 1].role != "user"]
    made, trained_from = [], 0
    for end in [*ends, len(messages)]:
        former = tuple(
            msgspec.structs.replace(message, loss=False) if number < trained_from else message
            for number, message in enumerate(messages[:end])
        )
        last = end == len(messages)
        made.append(msgspec.structs.replace(row, messages=former, rejected=row.rejected if last else None))
        trained_from = end
    return [row for row in made if any(message.role == "assistant" for message in row.messages)]
