"""Rewards, each against a table of answers."""

import math
from pathlib import Path

import pytest

from hf_bridge.data.row import Message, Row, ToolCall
from hf_bridge.methods.rewards.registry import check, reward
from hf_bridge.methods.rewards.reward import Answer, question
from swift_mega.base.errors import UserError


def row(answer: Message | None = None, **extra: object) -> Row:
    asked = (Message("system", "Be brief."), Message("user", "What is  six\ntimes seven?"))
    return Row(asked if answer is None else (*asked, answer), extra=extra)


def score(written: str, text: str, about: Row, tokens: int = 0) -> float | None:
    return reward(written).score([Answer(text, tokens)], [about])[0]


@pytest.mark.parametrize(
    ("text", "solution", "right"),
    [
        ("6·7 = 42", "42", 1),
        ("The answer is 42.", 42, 1),
        ("first 41, then \\boxed{42}, no 43", "42.0", 1),
        ("\\boxed{\\frac{1}{2}}", "0.5", 1),
        ("\\boxed{\\dfrac{\\sqrt{2}}{2}}", "\\frac{\\sqrt{2}}{2}", 1),
        ("<think>7</think><answer>1,234 </answer>", "1234", 1),
        ("so\n#### 1,000", "steps 3\n#### 1000", 1),
        ("50\\%", "50", 1),
        ("-3", "3", 0),
        ("\\boxed{(1, 2)}", "(1.0,2)", 1),
        ("\\boxed{(1, 2)}", "(2, 1)", 0),
        ("\\boxed{x+1}", "x + 1", 1),
        ("Answer: Paris", "paris", 1),
        ("about 0.3333", "1/3", 0),
        ("1/3", "2/6", 1),
        ("1/0", "1", 0),
        ("", "42", 0),
        ("forty-two", "42", 0),
    ],
)
def test_accuracy(text: str, solution: object, right: int) -> None:
    assert score("accuracy", text, row(solution=solution)) == right


def test_accuracy_without_a_solution_says_nothing_and_a_column_that_is_not_there_is_named() -> None:
    assert score("accuracy", "42", row()) is None
    assert score("accuracy:column=target", "42", row(target="42")) == 1
    with pytest.raises(UserError, match=r"the row “What is six times seven\?”: it has no column `target`") as told:
        score("accuracy:column=target", "42", row(solution="42"))
    assert "--keep-columns target" in told.value.fix


@pytest.mark.parametrize(
    ("written", "column"),
    [("accuracy", "solution"), ("accuracy:column=x", "x"), ("cosine:limit=9", "solution"), ("code:run=true", "tests")],
)
def test_a_reward_that_could_judge_no_row_is_refused(written: str, column: str) -> None:
    with pytest.raises(UserError, match=f"reward `.*` compares with a row's .*`{column}`.*, and no row has it") as told:
        check(written, [row(), row()])
    assert f"`--keep-columns {column}`" in told.value.fix
    check(written, [row(), row(**{column: "1"})])  # type: ignore[arg-type]
    check("format", [row()])
    with pytest.raises(UserError, match="there is no reward `acuracy`"):
        check("acuracy", [row()])


@pytest.mark.parametrize(
    ("written", "text", "expected"),
    [
        ("format", "<think>a\nb</think>\n<answer>c</answer>", 1),
        ("format", "<think>a</think> so <answer>c</answer>", 0),
        ("format", "<think>a<think></think><answer>c</answer>", 0),
        ("format:opened=true", "a</think><answer>c</answer>", 1),
        ("format:form=think", "<think>a</think>c", 1),
        ("format:form=think", "<think>a</think> ", 0),
        ("format:form=think", "c", 0),
    ],
)
def test_format(written: str, text: str, expected: float) -> None:
    assert score(written, text, row()) == expected


@pytest.mark.parametrize(("tokens", "expected"), [(10, 0), (80, 0), (90, -0.5), (100, -1), (500, -1)])
def test_length_is_the_soft_overlong_punishment(tokens: int, expected: float) -> None:
    assert score("length:limit=100,cache=20", "x", row(), tokens) == expected


def test_cosine() -> None:
    about = row(solution=42)
    for tokens, right, wrong in [(0, 1, -1), (100, -1, -1), (50, 0.75, -0.75)]:
        assert score("cosine:limit=100", "42", about, tokens) == pytest.approx(right)
        assert score("cosine:limit=100", "41", about, tokens) == pytest.approx(wrong)
    assert score("cosine:limit=100", "42", about, 25) == pytest.approx(0.5 + 0.25 * (1 + math.cos(math.pi / 4)))
    assert score("cosine:limit=100", "42", row()) is None


@pytest.mark.parametrize(
    ("text", "expected"), [("a b c d", 0), ("a b a b a b", -(1 - 2 / 5)), ("a", 0), ("", 0), ("一一一一", -(1 - 1 / 3))]
)
def test_repetition(text: str, expected: float) -> None:
    assert score("repetition:words=2", text, row()) == pytest.approx(expected)


CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris", "days": 2}}\n</tool_call>'
NEAR = CALL.replace("2", "3")
OTHER = CALL.replace("weather", "time")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (CALL, 1),
        ("Let me see.\n" + CALL, 1),
        (NEAR, 0.75),
        (OTHER, 0),
        ("It rains.", 0),
        (CALL + OTHER, 0.5),
        (NEAR + CALL, 0.5),
        ("<tool_call>{broken</tool_call>", 0),
    ],
)
def test_tools(text: str, expected: float) -> None:
    wanted = Message("assistant", "", (ToolCall("weather", {"days": 2, "city": "Paris"}),))
    assert score("tools:format=hermes", text, row(wanted)) == expected


def test_tools_where_none_is_wanted() -> None:
    assert score("tools", "It rains.", row(Message("assistant", "Sunny."))) == 1
    assert score("tools", CALL, row(Message("assistant", "Sunny."))) == 0
    assert score("tools", CALL, row()) is None


ADD = "Here:\n```python\ndef add(a, b):\n    return a + b\n```\n"


@pytest.mark.parametrize(
    ("text", "test", "expected"),
    [
        (ADD, "assert add(1, 2) == 3", 1),
        ("def add(a, b): return a + b", "assert add(1, 2) == 3", 1),
        (ADD, "assert add(1, 2) == 4", 0),
        ("```python\nimport os\nos._exit(0)\n```", "assert False", 0),
        ("```python\nx = bytearray(2 << 30)\n```", "", 0),
        ("```python\nwhile True: print('x' * 1000)\n```", "assert True", 0),
    ],
)
def test_code(text: str, test: str, expected: float) -> None:
    tests = [test or "pass"]
    assert score("code:run=true,seconds=2", text, row(tests=tests)) == expected


def test_code_that_does_not_end_is_ended_and_shares_of_tests_count() -> None:
    assert score("code:run=true,seconds=1", "while True: pass", row(tests="assert True")) == 0
    assert score("code:run=true", ADD, row(tests=["assert add(1, 1) == 2", "assert add(1, 1) == 3"])) == 0.5
    assert score("code:run=true", ADD, row()) is None
    with pytest.raises(UserError, match="no sandbox") as told:
        reward("code")
    assert "code:run=true" in told.value.fix


def test_own_function_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "def short(answer, row):\n    return 1 / answer.tokens\ndef text(answer, row):\n    return 'good'\n"
    )
    assert score(f"{file}:short", "x", row(), 4) == 0.25
    with pytest.raises(UserError, match=r"failed on the row “What is six times seven\?”: ZeroDivisionError.*mine.py:2"):
        score(f"{file}:short", "x", row())
    with pytest.raises(UserError, match="gave 'good' for the row"):
        score(f"{file}:text", "x", row())
    with pytest.raises(UserError, match="no function `shirt`") as told:
        reward(f"{file}:shirt")
    assert told.value.fix == "did you mean `short`?"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\ndef f(:\n", r"SyntaxError: .* \(mine.py:2\)"),
        ("\nimport nowhere.at_all\n", r"ModuleNotFoundError: No module named 'nowhere' \(mine.py:2\)"),
        ("import json\nx = json.loads('')\n", r"JSONDecodeError: Expecting value.* \(mine.py:2\)"),
    ],
)
def test_a_file_that_cannot_be_imported_is_told_with_the_line(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(text)
    with pytest.raises(UserError, match=r"mine.py cannot be imported: " + message):
        reward(f"{file}:f")


@pytest.mark.parametrize(
    ("written", "what", "fix"),
    [
        ("acuracy", "there is no reward `acuracy`", "did you mean `accuracy`?"),
        ("length:limit=5", "needs cache", "length:cache=…"),
        ("length:limit=5,cash=2", "no option `cash=2`", "did you mean `cache`?"),
        ("length:limit=many,cache=2", "is `many`", "int"),
        ("length:limit=5,cache=6", "`cache` is 6 and `limit` 5", "1 to `limit`"),
        ("format:form=thing", "there is no form `thing`", "did you mean `think`?"),
        ("gone/mine.py:score", "there is no file", "folder/my.py:function"),
        ("tools:format=hermess", "there is no agent format `hermess`", "did you mean `hermes`?"),
    ],
)
def test_what_cannot_be(written: str, what: str, fix: str) -> None:
    with pytest.raises(UserError) as told:
        reward(written)
    assert what in told.value.what and fix in told.value.fix


def test_the_question_of_a_row_is_without_its_answer() -> None:
    whole = row(Message("assistant", "42"), solution=42)
    assert question(whole) == row(solution=42)
    assert question(row()).messages[-1].role == "user"
