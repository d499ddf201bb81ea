"""Each promise of promises.py has a test that stands for it."""

import ast
from pathlib import Path

from tests.host.promises import PROMISES


def test_every_promise_is_tested_and_no_other_is_named():
    tested = set()
    for path in Path(__file__).parent.glob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                marks = [call for call in node.decorator_list if ast.unparse(call).startswith("pytest.mark.promise(")]
                tested |= {ast.literal_eval(name) for call in marks if isinstance(call, ast.Call) for name in call.args}
    assert tested == PROMISES.keys()
