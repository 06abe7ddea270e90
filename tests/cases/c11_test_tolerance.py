"""Tests with a tolerance of their own. Sources: LiveCodeBench/LiveCodeBench#129, shyamsaktawat/OpenAlpha_Evolve#19, evalplus/evalplus#308.
Right: the tolerance that the assertion states decides (math.isclose: rel_tol, default 1e-9), whatever the reference returned."""
import json
import pathlib
import tempfile

from _case import Case

from llm_mdp_envs.tasks.programs import mbpp_problems
from llm_mdp_envs.sandbox import make_sandbox

case, path = Case(), pathlib.Path(tempfile.mkdtemp()) / "x.jsonl"
PI = "import math\ndef area(r):\n    return math.pi * r * r\n"
with make_sandbox("auto", workers=1) as sandbox:

    def verdict(code, test, reply):
        path.write_text(json.dumps({"task_id": 1, "text": "t", "code": code, "test_list": [test], "test_imports": ["import math"]}))
        (problem,) = mbpp_problems(path, sandbox)
        return problem.grade(sandbox.run([problem.program(reply)])[0]).verdict

    ref = "def area(r):\n    return 3.1415 * r * r\n"
    case.check("isclose(..., rel_tol=0.001)", "passed", lambda: verdict(ref, "assert math.isclose(area(10), 314.15, rel_tol=0.001)", PI))
    case.check("isclose(..., abs_tol=0.1)", "passed", lambda: verdict(ref, "assert math.isclose(area(10), 314.15, abs_tol=0.1)", PI))
    case.check("abs(f - y) < 1.0", "passed", lambda: verdict(ref, "assert abs(area(10) - 314) < 1.0", PI))
    case.check("control: 300", "failed", lambda: verdict(ref, "assert math.isclose(area(10), 314.15, rel_tol=0.001)", "def area(r):\n    return 300.0\n"))
    tiny = "def f(n):\n    return n * 1e-9\n"
    case.check("isclose default on 3e-9 against 4e-9", "failed", lambda: verdict(tiny, "assert math.isclose(f(3), 3e-9)", "def f(n):\n    return 4e-9\n"))
    case.check("isclose default on 1e12 + 1", "passed", lambda: verdict("def f(n):\n    return 1e12\n", "assert math.isclose(f(3), 1e12)", "def f(n):\n    return 1e12 + 1\n"))
    case.check("== stays exact", "failed", lambda: verdict("def f(n):\n    return 0.5\n", "assert f(1) == 0.5", "def f(n):\n    return 0.5000001\n"))
case.end()
