"""JSONL files as users have them. Sources: huggingface/datasets#8241, pydantic/pydantic-ai#8316 (BOM); datalad/datalad#3523 (U+2028).
Right: JSON allows U+2028, U+2029 and U+0085 inside strings, so they end no line; a BOM is skipped; another encoding is refused naming the file."""
import json
import pathlib
import tempfile

from _case import Case

from llm_mdp_envs.tasks.math_problems import Math
from llm_mdp_envs.tasks.programs import mbpp_problems
from llm_mdp_envs.sandbox import make_sandbox

case, path = Case(), pathlib.Path(tempfile.mkdtemp()) / "mine.jsonl"
row = lambda question: json.dumps({"question": question, "answer": "#### 1"}, ensure_ascii=False).encode()


def loaded(raw):
    path.write_bytes(raw)
    return [question for question, _ in Math(path).problems]


def names_the_file(got):
    """a message with the file's name"""
    return "mine.jsonl" in str(got)


case.check("BOM", ["a"], lambda: loaded(b"\xef\xbb\xbf" + row("a")))
for sign in ("\u2028", "\u2029", "\x85"):
    case.check(f"{sign!r} in a question", [f"How{sign}many?"], lambda sign=sign: loaded(row(f"How{sign}many?")))
case.check("CRLF", ["a", "b"], lambda: loaded(row("a") + b"\r\n" + row("b") + b"\r\n"))
case.check("UTF-16 is refused by name", names_the_file, lambda: loaded(row("a").decode().encode("utf-16")))
case.check("Latin-1 is refused by name", names_the_file, lambda: loaded(row("caf\u00e9").decode().encode("latin-1")))
task = {"task_id": 1, "text": "Add\u2028two.", "code": "def add(a, b):\n    return a + b", "test_list": ["assert add(1, 2) == 3"]}
with make_sandbox("auto", workers=1) as sandbox:
    for name, raw in (("MBPP with U+2028", json.dumps(task, ensure_ascii=False).encode()), ("MBPP with BOM", b"\xef\xbb\xbf" + json.dumps(task).encode())):
        path.write_bytes(raw)
        case.check(name, 1, lambda: len(mbpp_problems(path, sandbox)))
case.end()
