"""docs/traces.md lists the columns as they are."""

from pathlib import Path

from megatron_fork.traces import COLUMNS

DOCS = Path(__file__).parents[2] / "docs" / "traces.md"


def test_the_table_is_that_of_the_schema() -> None:
    lines = [line for line in DOCS.read_text().splitlines() if line.startswith("| `")]
    expected = []
    for column in COLUMNS:
        each = ["a token each"] if column.per_token else []
        each += [] if column.required else ["may be null"]
        expected.append(f"| `{column.name}` | {column.type} | {', '.join(each)} | {column.meaning} |")
    assert lines == expected
