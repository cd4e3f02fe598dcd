"""Files of results: what is read of them, and how they grow."""

from pathlib import Path

import pytest

from experiments.common.errors import ConfigError
from experiments.common.lines import append_json_line, read_json_lines


def test_a_line_that_was_cut_off_is_passed_over_and_gives_way_to_the_next(tmp_path: Path) -> None:
    path = tmp_path / "new" / "lines.jsonl"
    assert list(read_json_lines(path, dict, "anything")) == []
    append_json_line(path, {"a": 1})
    append_json_line(path, {"b": "ü"})
    path.write_text(path.read_text(encoding="utf-8") + '{"c": "ü', encoding="utf-8")
    assert list(read_json_lines(path, dict, "anything")) == [(1, {"a": 1}), (2, {"b": "ü"})]
    append_json_line(path, {"d": 3})
    assert path.read_text(encoding="utf-8") == '{"a": 1}\n{"b": "ü"}\n{"d": 3}\n'


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text('{"a": 1}\n{"b": 2}\n')
    with pytest.raises(ConfigError, match=r"line 2 of .*lines.jsonl is no record of a training: KeyError\('a'\)"):
        list(read_json_lines(path, lambda line: line["a"], "a training"))
    path.write_text("no JSON\n")
    with pytest.raises(ConfigError, match="line 1"):
        list(read_json_lines(path, dict, "a training"))
