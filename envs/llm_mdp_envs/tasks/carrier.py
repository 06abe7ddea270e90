"""Tests of any form, on answers that were given elsewhere. This file runs inside sandboxes, as text.

A program is called in one sandbox, with arguments and without tests (`observe`). In another sandbox, without the
program, the tests run on what it answered (`judge`). What the calls are is found once, by running the tests on the
reference solution through the same two steps (`record`), so that a test which these steps would distort fails there.

Arguments and answers cross as lists of nodes (`describe`, `rebuild`): plain data as it is; containers, objects of
classes that both sides know, iterators (as many items as there are, at most 4,096) and the standard library's values
as what they are made of, with shared and circular references. A function crosses only towards the program, as an
argument; one that a program answers with stays where it is, and the calls of it go there.
"""

import builtins
import copy
import importlib
import itertools
import marshal
import math
import random
import re
import sys
import types
from typing import Any

MOST_ITEMS = 4096
PLAIN = (type(None), bool, int, float, complex, str, bytes)
STANDARD = {
    "fractions": ("Fraction",),
    "decimal": ("Decimal",),
    "datetime": ("date", "datetime", "time", "timedelta", "timezone"),
    "collections": ("deque", "Counter", "OrderedDict", "defaultdict"),
    "builtins": ("range", "bytearray", "slice"),
}
VIEWS = {type({}.keys()): "keys", type({}.values()): "values", type({}.items()): "items"}


class NoAnswer(BaseException):
    """There is no answer to go on with; no test may catch it."""


def is_plain(value, depth=0):
    kind = type(value)
    if kind in PLAIN:
        return True
    if (
        depth > 16
        or kind not in (list, tuple, set, frozenset, dict)
        or (kind not in (list, tuple) and len(value) > MOST_ITEMS)
    ):
        return False
    items = itertools.chain.from_iterable(value.items()) if kind is dict else value
    return all(is_plain(item, depth + 1) for item in items)


def describe(value, namespace, functions="refused"):
    """The nodes of a value, the first one its root.

    Args:
        value: anything.
        namespace: whose classes it may have.
        functions: "refused"; "carried", by their code; or "left", where what they are does not matter.

    Raises:
        TypeError: something in it is no data, such as a function.
    """
    nodes, places, kept = [], {}, []

    def place_of(item):
        if id(item) not in places:
            places[id(item)] = len(nodes)
            kept.append(item)
            nodes.append(None)
            nodes[places[id(item)]] = node(item)
        return places[id(item)]

    def places_of(items):
        return [place_of(item) for item in items]

    def node(item):
        kind = type(item)
        if is_plain(item):
            return ["plain", copy.deepcopy(item)]
        if kind in (list, tuple, set, frozenset):
            return [kind.__name__, places_of(item)]
        if kind is dict:
            return ["dict", [places_of(pair) for pair in item.items()]]
        if kind in VIEWS:
            return [VIEWS[kind], places_of(item)]
        if isinstance(item, type) or kind is types.BuiltinFunctionType:
            if getattr(builtins, item.__name__, None) is item:
                return ["builtin", item.__name__]
            if isinstance(item, type) and namespace.get(item.__name__) is item:
                return ["own", item.__name__]
            raise TypeError(f"{item.__name__} is no data")
        if kind is types.FunctionType and functions == "left":
            return ["left"]
        if kind is types.FunctionType and functions == "carried" and not item.__closure__:
            return [
                "function",
                marshal.dumps(item.__code__),
                place_of(item.__defaults__),
                place_of(item.__kwdefaults__),
            ]
        if isinstance(item, (types.FunctionType, types.MethodType, types.ModuleType)):
            raise TypeError(f"a {kind.__name__} cannot be carried into another sandbox")
        if hasattr(kind, "__next__"):
            return ["iterator", places_of(list(itertools.islice(item, MOST_ITEMS)))]
        return made(item)

    def made(item):
        parts: Any = item.__reduce_ex__(2)
        if not isinstance(parts, tuple):
            raise TypeError(f"{type(item).__name__} is no data")
        maker, arguments, *others = parts
        state, items, pairs = (*others, None, None, None)[:3]
        new = maker.__module__ == "copyreg" and maker.__name__ == "__newobj__"
        if new:
            maker, *arguments = arguments
        return [
            "new" if new else "made",
            name_of(maker),
            places_of(arguments),
            None if state is None else place_of(state),
            places_of(items or ()),
            [places_of(pair) for pair in pairs or ()],
        ]

    def name_of(maker):
        if isinstance(maker, type):
            if maker.__name__ in STANDARD.get(maker.__module__, ()) or is_error(maker):
                return f"{maker.__module__}.{maker.__name__}"
            if maker.__module__ not in sys.stdlib_module_names:
                return maker.__name__
        raise TypeError(f"{getattr(maker, '__name__', maker)} is no data")

    place_of(value)
    return nodes


def is_error(kind):
    return kind.__module__ == "builtins" and issubclass(kind, Exception)


def rebuild(nodes, namespace, functions=False):
    """The value that these nodes describe, of this namespace's classes. A class that it does not know is one without
    methods. Functions are made only where that is asked for: never of an answer."""
    done: dict[int, Any] = {}

    def build(place):
        if place not in done:
            done[place] = builders[nodes[place][0]](place, *nodes[place][1:])
        return done[place]

    def several(places):
        return [build(place) for place in places]

    def filled_list(place, places):
        done[place] = shell = []
        shell.extend(several(places))
        return shell

    def filled_dict(place, pairs):
        done[place] = shell = {}
        for pair in pairs:
            key, item = several(pair)
            shell[key] = item
        return shell

    def filled_object(place, new, name, arguments, state, items, pairs):
        kind: Any = class_of(name)
        given = several(arguments)
        done[place] = shell = kind.__new__(kind, *given) if new else kind(*given)
        if state is not None:
            set_state(shell, build(state))
        if items:
            shell.extend(several(items))
        for pair in pairs:
            key, item = several(pair)
            shell[key] = item
        return shell

    def class_of(name):
        module, _, last = name.rpartition(".")
        if not module:
            kind = namespace.get(name)
            return kind if isinstance(kind, type) else type(name, (), {})
        kind = getattr(importlib.import_module(module), last) if module in STANDARD else None
        if last not in STANDARD.get(module, ()) and not (isinstance(kind, type) and is_error(kind)):
            raise TypeError(f"{name} is no data")
        return kind

    def function(place, code, defaults, keyword_defaults):
        if not functions:
            raise TypeError("a function is no data")
        made = types.FunctionType(marshal.loads(code), namespace, "argument", build(defaults))
        made.__kwdefaults__ = build(keyword_defaults)
        return made

    builders: dict[str, Any] = {
        "plain": lambda place, value: copy.deepcopy(value),
        "function": function,
        "left": lambda place: None,
        "list": filled_list,
        "dict": filled_dict,
        "tuple": lambda place, places: tuple(several(places)),
        "set": lambda place, places: set(several(places)),
        "frozenset": lambda place, places: frozenset(several(places)),
        "iterator": lambda place, places: iter(several(places)),
        "keys": lambda place, places: dict.fromkeys(several(places)).keys(),
        "values": lambda place, places: dict(enumerate(several(places))).values(),
        "items": lambda place, places: dict(several(places)).items(),
        "builtin": lambda place, name: getattr(builtins, name),
        "own": lambda place, name: class_of(name),
        "new": lambda place, *parts: filled_object(place, True, *parts),
        "made": lambda place, *parts: filled_object(place, False, *parts),
    }
    return build(0)


def set_state(shell, state):
    if hasattr(shell, "__setstate__"):
        shell.__setstate__(state)
        return
    fields, slots = state if isinstance(state, tuple) else (state, None)
    if fields:
        vars(shell).update(fields)
    for name, value in (slots or {}).items():
        object.__setattr__(shell, name, value)


def observe(function, namespace, call, kept):
    """What a function answers to a call, as plain data.

    Args:
        function: the entry point of the program.
        namespace: the program's.
        call: [which function: None for the entry point, or the number of the call that answered with it, nodes of the
            arguments].
        kept: answers so far, as they are; this one is added.

    Returns:
        ["returned", nodes, nodes of the arguments if it changed them], ["function"] where the answer is one, or
        ["raised", names of the exception's class and its bases, message]. What a sandbox forbids is raised here too.
    """
    target, nodes = call
    kept.append(None)
    before = describe(rebuild(nodes, namespace, True), namespace, "left")
    arguments, keywords = rebuild(nodes, namespace, True)
    try:
        kept[-1] = output = (function if target is None else kept[target])(*arguments, **keywords)
        if isinstance(output, (types.FunctionType, types.MethodType)):
            return ["function"]
        answer = describe(output, namespace)
        after = describe([arguments, keywords], namespace, "left")
    except (PermissionError, MemoryError):
        raise
    except Exception as error:
        return ["raised", [base.__name__ for base in type(error).__mro__], str(error)[:500]]
    return ["returned", answer, after if after != before else None]


def caller(namespace, answer, target=None):
    """A function that asks `answer` (call -> answer, number of the call) what it returns or raises, and makes the
    changes to its arguments that the call made."""

    def candidate(*arguments, **keywords):
        given, number = answer([target, describe([list(arguments), keywords], namespace, "carried")])
        if given[0] == "raised":
            raise error_of(given[1], given[2], namespace)
        if given[0] == "function":
            return caller(namespace, answer, number)
        _, nodes, after = given
        if after is not None:
            changed, changed_keywords = rebuild(after, namespace)
            for old, new in zip([*arguments, *keywords.values()], [*changed, *changed_keywords.values()]):
                change(old, new)
        return rebuild(nodes, namespace)

    return candidate


def change(old, new):
    if type(old) in (list, bytearray):
        old[:] = new
    elif type(old) in (dict, set):
        old.clear()
        old.update(new)
    elif hasattr(old, "__dict__") and hasattr(new, "__dict__"):
        vars(old).clear()
        vars(old).update(vars(new))


def error_of(names, message, namespace):
    known = (namespace.get(name) or getattr(builtins, name, None) for name in names)
    kind = next(kind for kind in [*known, Exception] if isinstance(kind, type) and issubclass(kind, Exception))
    error = kind.__new__(kind, message)
    error.args = (message,) if message else ()
    return error


def fresh(source):
    namespace: dict[str, Any] = {"__name__": "program"}
    modules: Any = sys.modules
    modules.setdefault("pytest", Pytest)
    exec(compile(source, "<program>", "exec"), namespace)
    return namespace


def run_test(source, text, name, answer):
    """Run a test, with `answer` in place of the function of this name; see `caller`."""
    random.seed(0)
    namespace = fresh(source)
    namespace.setdefault("pytest", Pytest)
    namespace[name] = caller(namespace, answer)
    exec(compile(text, "<test>", "exec"), namespace)


def record(reference, definitions, text, name):
    """The calls that a test makes of the reference solution, and its answers. Raises what the test raises."""
    solution, calls, kept = fresh(reference), [], []

    def answer(call):
        calls.append([call, observe(solution[name], solution, call, kept)])
        return calls[-1][1], len(calls) - 1

    run_test(definitions, text, name, answer)
    return calls


def judge(definitions, text, name, calls, answers):
    """True; raises what the test raises on these answers, or NoAnswer where it goes another way than it went on the
    reference solution."""
    coming = enumerate(zip(calls, answers))

    def answer(call):
        number, (expected, given) = next(coming, (0, (None, None)))
        if given is None or (call != expected and repr(call) != repr(expected)):
            raise NoAnswer
        return given, number

    run_test(definitions, text, name, answer)
    return True


class Approx:
    """`pytest.approx`: within 1e-6 of it or within 1e-12, entry by entry."""

    def __init__(self, expected, rel=None, abs=None):
        self.expected = expected
        self.relative = rel if rel is not None else 0.0 if abs is not None else 1e-6
        self.absolute = 1e-12 if abs is None else abs

    def __eq__(self, other):
        return self.near(other, self.expected)

    def near(self, value, expected):
        if isinstance(expected, dict):
            return value.keys() == expected.keys() and all(self.near(value[key], expected[key]) for key in expected)
        if isinstance(expected, (list, tuple)):
            return len(value) == len(expected) and all(map(self.near, value, expected))
        if not isinstance(expected, (int, float)):
            return value == expected
        return value == expected or math.fabs(value - expected) <= max(
            self.absolute, self.relative * math.fabs(expected)
        )


class Raises:
    """`pytest.raises`."""

    def __init__(self, kind, match=None):
        self.kind, self.match, self.value = kind, match, None

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if kind is None:
            raise AssertionError("nothing was raised")
        self.value = error
        return issubclass(kind, self.kind) and (self.match is None or bool(re.search(self.match, str(error))))


class Pytest:
    """What tests take from pytest."""

    approx, raises = Approx, Raises
