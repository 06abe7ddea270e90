"""Small right programs, as people and models write them: each defines f, and every feature is one that some sandbox or
subset of Python has been known to lack. `PROGRAMS` holds name, source and inputs.

In the text below a program begins with `## name: inputs`, the inputs written as a list of tuples.
"""

# ruff: noqa: E501 (programs)
import ast

TEXT = r'''
## next with a default: [([1, 2, 3],), ([],), ([5, 7],)]
def f(xs):
    return next((x for x in xs if x > 2), None)
## next without a default: [([3, 1],)]
def f(xs):
    it = iter(xs)
    return [next(it), next(it), next(it, "end")]
## a generator function: [(0,), (7,)]
def f(n):
    def countdown(k):
        while k > 0:
            yield k
            k -= 1
    return list(countdown(n))
## yield from: [([1, [2, [3, [4]]], 5],)]
def f(tree):
    def flat(node):
        for item in node:
            if isinstance(item, list):
                yield from flat(item)
            else:
                yield item
    return list(flat(tree))
## a generator that is sent values: [([1, 2, 3],)]
def f(xs):
    def averager():
        total, count, mean = 0, 0, None
        while True:
            value = yield mean
            total += value
            count += 1
            mean = total / count
    gen = averager()
    next(gen)
    return [gen.send(x) for x in xs]
## the value of a generator: [(4,)]
def f(n):
    def inner():
        yield n
        return n * 10
    def outer():
        got = yield from inner()
        yield got
    return list(outer())
## a generator that is closed: [(3,)]
def f(n):
    log = []
    def gen():
        try:
            for i in range(n):
                yield i
        finally:
            log.append("closed")
    g = gen()
    log.append(next(g))
    g.close()
    return log
## a pipeline of generators: [(20,)]
def f(n):
    def evens(it):
        return (x for x in it if x % 2 == 0)
    def squares(it):
        for x in it:
            yield x * x
    return sum(squares(evens(range(n))))
## an iterator class: [(5,)]
class Fib:
    def __init__(self, n):
        self.n, self.a, self.b = n, 0, 1
    def __iter__(self):
        return self
    def __next__(self):
        if self.n == 0:
            raise StopIteration
        self.n -= 1
        self.a, self.b = self.b, self.a + self.b
        return self.a
def f(n):
    return list(Fib(n))
## an old-fashioned sequence: [(4,)]
class Squares:
    def __getitem__(self, i):
        if i >= 4:
            raise IndexError
        return i * i
def f(n):
    return [x for x in Squares()], n * n in Squares(), 9 in Squares()
## length and truth of an object: [([],), ([1, 2],)]
class Bag:
    def __init__(self, items):
        self.items = items
    def __len__(self):
        return len(self.items)
def f(items):
    bag = Bag(items)
    return len(bag), bool(bag), "full" if bag else "empty"
## __bool__: [(0,), (3,)]
class Account:
    def __init__(self, balance):
        self.balance = balance
    def __bool__(self):
        return self.balance > 0
def f(x):
    return not Account(x), bool(Account(x))
## sorting objects by __lt__: [([3, 1, 2],)]
class Version:
    def __init__(self, n):
        self.n = n
    def __lt__(self, other):
        return self.n < other.n
def f(ns):
    return [v.n for v in sorted(Version(n) for n in ns)], max(map(Version, ns)).n, min(map(Version, ns)).n
## total_ordering: [(1, 2), (2, 2)]
from functools import total_ordering
@total_ordering
class P:
    def __init__(self, x):
        self.x = x
    def __eq__(self, other):
        return self.x == other.x
    def __lt__(self, other):
        return self.x < other.x
def f(a, b):
    return P(a) <= P(b), P(a) >= P(b), P(a) > P(b), P(a) != P(b)
## arithmetic of objects: [(1, 2), (-3, 4)]
class Vector:
    def __init__(self, x, y):
        self.x, self.y = x, y
    def __add__(self, other):
        return Vector(self.x + other.x, self.y + other.y)
    def __mul__(self, k):
        return Vector(self.x * k, self.y * k)
    __rmul__ = __mul__
    def __neg__(self):
        return Vector(-self.x, -self.y)
    def __abs__(self):
        return (self.x ** 2 + self.y ** 2) ** 0.5
    def __repr__(self):
        return f"Vector({self.x}, {self.y})"
def f(x, y):
    v = Vector(x, y)
    return repr(v + v * 2), repr(3 * v), repr(-v), abs(v), str([v])
## in-place operators: [([1],)]
class Stack:
    def __init__(self):
        self.items = []
    def __iadd__(self, item):
        self.items.append(item)
        return self
def f(xs):
    s = Stack()
    for x in xs:
        s += x
        s += x + 1
    return s.items
## equality and hash: [([(1, 2), (2, 1), (1, 2)],)]
class Point:
    def __init__(self, x, y):
        self.x, self.y = x, y
    def __eq__(self, other):
        return isinstance(other, Point) and (self.x, self.y) == (other.x, other.y)
    def __hash__(self):
        return hash((self.x, self.y))
def f(pairs):
    points = [Point(*pair) for pair in pairs]
    return len(set(points)), points[0] == points[2], points[0] != points[1], {p: i for i, p in enumerate(points)}[Point(1, 2)]
## __getitem__, __setitem__, __delitem__, __contains__: [(2, 3)]
class Matrix:
    def __init__(self, rows, columns):
        self.cells = {(r, c): 0 for r in range(rows) for c in range(columns)}
    def __getitem__(self, place):
        return self.cells[place]
    def __setitem__(self, place, value):
        self.cells[place] = value
    def __delitem__(self, place):
        del self.cells[place]
    def __contains__(self, place):
        return place in self.cells
def f(rows, columns):
    m = Matrix(rows, columns)
    m[0, 1] = 7
    m[1, 1] += 2
    del m[0, 0]
    return m[0, 1], m[1, 1], (0, 0) in m, (1, 2) in m
## slices of objects: [([1, 2, 3, 4, 5],)]
class Window:
    def __init__(self, data):
        self.data = data
    def __getitem__(self, key):
        if isinstance(key, slice):
            return self.data[key], (key.start, key.stop, key.step)
        return self.data[key]
def f(data):
    w = Window(data)
    return w[1:3], w[::2], w[-1], w[slice(0, 2)]
## a callable object: [(3,)]
class Adder:
    def __init__(self, n):
        self.n = n
    def __call__(self, x):
        return x + self.n
def f(x):
    return Adder(2)(x), list(map(Adder(10), [x, x + 1]))
## inheritance and super: [(2, 3)]
class Shape:
    def __init__(self, name):
        self.name = name
    def area(self):
        return 0
    def __str__(self):
        return f"{self.name} of {self.area():.2f}"
class Rectangle(Shape):
    def __init__(self, a, b):
        super().__init__("rectangle")
        self.a, self.b = a, b
    def area(self):
        return self.a * self.b
class Square(Rectangle):
    def __init__(self, a):
        super().__init__(a, a)
        self.name = "square"
def f(a, b):
    return [str(s) for s in (Rectangle(a, b), Square(a))], isinstance(Square(1), Shape), issubclass(Square, Rectangle)
## multiple inheritance: [(1,)]
class A:
    def who(self):
        return ["A"]
class B(A):
    def who(self):
        return ["B"] + super().who()
class C(A):
    def who(self):
        return ["C"] + super().who()
class D(B, C):
    def who(self):
        return ["D"] + super().who()
def f(x):
    return D().who(), [k.__name__ for k in D.__mro__]
## abstract classes: [(2.0,)]
from abc import ABC, abstractmethod
class Shape(ABC):
    @abstractmethod
    def area(self): ...
class Circle(Shape):
    def __init__(self, r):
        self.r = r
    def area(self):
        return round(3 * self.r ** 2, 1)
def f(r):
    try:
        Shape()
    except TypeError:
        return Circle(r).area()
## a method that is not implemented in the base: [(1,)]
class Base:
    def run(self):
        raise NotImplementedError
class Child(Base):
    def run(self):
        return "done"
def f(x):
    try:
        Base().run()
    except NotImplementedError as error:
        return Child().run(), type(error).__name__
## properties: [(25,)]
class Celsius:
    def __init__(self, degrees):
        self._degrees = degrees
    @property
    def fahrenheit(self):
        return self._degrees * 9 / 5 + 32
    @fahrenheit.setter
    def fahrenheit(self, value):
        self._degrees = (value - 32) * 5 / 9
def f(degrees):
    t = Celsius(degrees)
    before = t.fahrenheit
    t.fahrenheit = 212
    return before, t._degrees
## class and static methods: [("3-4",)]
class Pair:
    made = 0
    def __init__(self, a, b):
        self.a, self.b = a, b
        Pair.made += 1
    @classmethod
    def parse(cls, text):
        return cls(*map(int, text.split("-")))
    @staticmethod
    def add(a, b):
        return a + b
def f(text):
    p = Pair.parse(text)
    return p.a, p.b, Pair.add(p.a, p.b), Pair.made
## __slots__ and getattr: [("x",), ("z",)]
class P:
    __slots__ = ("x", "y")
    def __init__(self):
        self.x, self.y = 1, 2
def f(name):
    return getattr(P(), name, "none"), hasattr(P(), name)
## __getattr__ and setattr: [("alpha",)]
class Config:
    def __getattr__(self, name):
        return f"no {name}"
def f(name):
    c = Config()
    setattr(c, "beta", 2)
    return getattr(c, name), c.beta, c.gamma
## a descriptor: [(5,), (-1,)]
class Positive:
    def __set_name__(self, owner, name):
        self.name = "_" + name
    def __get__(self, instance, owner):
        return getattr(instance, self.name)
    def __set__(self, instance, value):
        setattr(instance, self.name, max(0, value))
class Item:
    price = Positive()
    def __init__(self, price):
        self.price = price
def f(price):
    return Item(price).price
## a metaclass: [(1,)]
class Registry(type):
    known = []
    def __new__(mcs, name, bases, namespace):
        Registry.known.append(name)
        return super().__new__(mcs, name, bases, namespace)
class A(metaclass=Registry): pass
class B(A): pass
def f(x):
    return Registry.known, type(B).__name__
## __init_subclass__: [(1,)]
class Plugin:
    names = []
    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        Plugin.names.append(cls.__name__.lower())
class Reader(Plugin): pass
class Writer(Plugin): pass
def f(x):
    return Plugin.names
## __new__ and a singleton: [(1,)]
class One:
    instance = None
    def __new__(cls):
        if cls.instance is None:
            cls.instance = super().__new__(cls)
        return cls.instance
def f(x):
    return One() is One(), id(One()) == id(One())
## a subclass of dict: [("a b a",)]
class Counts(dict):
    def __missing__(self, key):
        return 0
def f(text):
    counts = Counts()
    for word in text.split():
        counts[word] += 1
    return dict(counts), counts["zzz"], "zzz" in counts
## a subclass of list: [([1, 2, 3],)]
class Stack(list):
    def peek(self):
        return self[-1]
    push = list.append
def f(xs):
    s = Stack(xs)
    s.push(9)
    return s.peek(), s.pop(), len(s), s
## a linked list: [([1, 2, 3],)]
class Node:
    def __init__(self, value, rest=None):
        self.value, self.rest = value, rest
def f(xs):
    head = None
    for x in xs:
        head = Node(x, head)
    out = []
    while head is not None:
        out.append(head.value)
        head = head.rest
    return out
## a tree with __iter__: [([5, 2, 8, 1],)]
class Tree:
    def __init__(self, value):
        self.value, self.left, self.right = value, None, None
    def insert(self, value):
        side = "left" if value < self.value else "right"
        child = getattr(self, side)
        if child is None:
            setattr(self, side, Tree(value))
        else:
            child.insert(value)
    def __iter__(self):
        if self.left:
            yield from self.left
        yield self.value
        if self.right:
            yield from self.right
def f(values):
    root = Tree(values[0])
    for value in values[1:]:
        root.insert(value)
    return list(root)
## a dataclass: [(1, 2)]
from dataclasses import dataclass, field, asdict, replace, astuple
@dataclass
class P:
    x: int
    y: int = 0
    tags: list = field(default_factory=list)
def f(x, y):
    p = P(x, y)
    p.tags.append("t")
    return asdict(p), repr(P(1)), P(1) == P(1, 0), astuple(replace(p, x=9))
## an ordered, frozen dataclass: [([3, 1, 2],)]
from dataclasses import dataclass, FrozenInstanceError
@dataclass(order=True, frozen=True)
class Card:
    rank: int
    suit: str = "s"
    def __post_init__(self):
        if self.rank < 0:
            raise ValueError("rank")
def f(ranks):
    cards = sorted(Card(r) for r in ranks)
    try:
        cards[0].rank = 7
    except FrozenInstanceError:
        return [c.rank for c in cards], len({Card(1), Card(1)})
## named tuples: [(3, 4)]
from collections import namedtuple
from typing import NamedTuple
Point = namedtuple("Point", "x y", defaults=[0])
class Size(NamedTuple):
    w: int
    h: int = 1
    def area(self):
        return self.w * self.h
def f(x, y):
    p = Point(x, y)
    return p.x + p.y, p._replace(x=0), p._asdict(), Point(1), Size(x, y).area(), Size(2)
## enum: [("RED",), ("BLUE",)]
from enum import Enum, IntEnum, Flag, auto
class Colour(Enum):
    RED = "r"
    BLUE = "b"
class Level(IntEnum):
    LOW = 1
    HIGH = 2
class Mode(Flag):
    READ = auto()
    WRITE = auto()
def f(name):
    c = Colour[name]
    return c.value, c.name, Colour("r") is Colour.RED, [m.name for m in Colour], Level.HIGH > Level.LOW, Level.HIGH + 1, (Mode.READ | Mode.WRITE).value
## a decorator: [(4,)]
import functools
def twice(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(function(*args, **kwargs))
    return wrapper
@twice
def plus(x):
    """Adds."""
    return x + 1
def f(x):
    return plus(x), plus.__name__, plus.__doc__
## a decorator with arguments: [(2,)]
def repeat(times):
    def decorate(function):
        def wrapper(x):
            for _ in range(times):
                x = function(x)
            return x
        return wrapper
    return decorate
@repeat(times=5)
def double(x):
    return 2 * x
def f(x):
    return double(x)
## a class as decorator: [(3,)]
class Counted:
    def __init__(self, function):
        self.function, self.calls = function, 0
    def __call__(self, *args):
        self.calls += 1
        return self.function(*args)
@Counted
def g(x):
    return x
def f(n):
    return [g(i) for i in range(n)], g.calls
## functools.cache: [(80,)]
from functools import cache
@cache
def fib(n):
    return n if n < 2 else fib(n - 1) + fib(n - 2)
def f(n):
    return fib(n)
## functools.lru_cache: [(300,)]
from functools import lru_cache
@lru_cache(maxsize=None)
def ways(n, k=5):
    if n == 0:
        return 1
    if n < 0 or k == 0:
        return 0
    return ways(n - k, k) + ways(n, k - 1)
def f(n):
    return ways(n), ways.cache_info().misses > 0
## reduce and partial: [([1, 2, 3, 4],)]
from functools import reduce, partial
def f(xs):
    power = partial(pow, 2)
    return reduce(lambda a, b: a * b, xs, 1), [power(x) for x in xs], partial(int, base=2)("101")
## singledispatch: [(1,), ("a",), ([1, "b"],)]
from functools import singledispatch
@singledispatch
def show(x):
    return "other"
@show.register
def _(x: int):
    return f"int {x}"
@show.register(list)
def _(x):
    return [show(item) for item in x]
def f(x):
    return show(x)
## cached_property: [(3,)]
from functools import cached_property
class C:
    def __init__(self):
        self.count = 0
    @cached_property
    def value(self):
        self.count += 1
        return 42
def f(n):
    c = C()
    return [c.value for _ in range(n)], c.count
## cmp_to_key: [(["3", "30", "34", "5", "9"],)]
from functools import cmp_to_key
def f(xs):
    return "".join(sorted(xs, key=cmp_to_key(lambda a, b: 1 if a + b < b + a else -1)))
## heapq: [([5, 1, 4, 2, 3],)]
import heapq
def f(xs):
    heap = list(xs)
    heapq.heapify(heap)
    heapq.heappush(heap, 0)
    return [heapq.heappop(heap) for _ in range(3)], heapq.nlargest(2, xs), heapq.nsmallest(2, xs, key=lambda x: -x), list(heapq.merge([1, 4], [2, 3]))
## Dijkstra: [({"a": {"b": 1, "c": 4}, "b": {"c": 2, "d": 5}, "c": {"d": 1}, "d": {}}, "a")]
import heapq
def f(graph, start):
    distance = {node: float("inf") for node in graph}
    distance[start] = 0
    queue = [(0, start)]
    while queue:
        d, node = heapq.heappop(queue)
        if d > distance[node]:
            continue
        for other, w in graph[node].items():
            if d + w < distance[other]:
                distance[other] = d + w
                heapq.heappush(queue, (d + w, other))
    return distance
## bisect: [([1, 3, 3, 5], 3)]
import bisect
def f(xs, x):
    left, right = bisect.bisect_left(xs, x), bisect.bisect(xs, x)
    bisect.insort(xs, x)
    return left, right, xs, bisect.bisect_left([(1, "a"), (2, "b")], 2, key=lambda p: p[0])
## deque: [([1, 2, 3],)]
from collections import deque
def f(xs):
    d = deque(xs, maxlen=4)
    d.appendleft(0)
    d.append(9)
    d.rotate(1)
    return list(d), d.popleft(), len(d), d[-1], d.maxlen
## breadth first: [({1: [2, 3], 2: [4], 3: [4], 4: []}, 1)]
from collections import deque
def f(graph, start):
    seen, order, queue = {start}, [], deque([start])
    while queue:
        node = queue.popleft()
        order.append(node)
        for other in graph[node]:
            if other not in seen:
                seen.add(other)
                queue.append(other)
    return order
## Counter: [("mississippi",)]
from collections import Counter
def f(word):
    c = Counter(word)
    d = c - Counter("miss")
    return c.most_common(2), dict(d), sum(c.values()), c["z"], sorted(c.elements())[:4], (c & Counter("sip")) == Counter("sip")
## defaultdict: [(["apple", "avocado", "bean"],)]
from collections import defaultdict
def f(words):
    groups = defaultdict(list)
    for word in words:
        groups[word[0]].append(word)
    nested = defaultdict(lambda: defaultdict(int))
    nested["a"]["b"] += 1
    return dict(groups), {k: dict(v) for k, v in nested.items()}
## OrderedDict and an LRU cache: [([1, 2, 1, 3],)]
from collections import OrderedDict
class LRU:
    def __init__(self, capacity):
        self.capacity, self.data = capacity, OrderedDict()
    def put(self, key, value):
        if key in self.data:
            self.data.move_to_end(key)
        self.data[key] = value
        if len(self.data) > self.capacity:
            self.data.popitem(last=False)
def f(keys):
    cache = LRU(2)
    for key in keys:
        cache.put(key, key * key)
    return list(cache.data.items())
## ChainMap: [({"a": 1}, {"a": 2, "b": 3})]
from collections import ChainMap
def f(a, b):
    m = ChainMap(a, b)
    return m["a"], m["b"], dict(m), len(m)
## itertools, combinations: [([1, 2, 3],)]
from itertools import combinations, permutations, product, combinations_with_replacement
def f(xs):
    return list(combinations(xs, 2)), len(list(permutations(xs))), list(product([0, 1], repeat=2)), list(combinations_with_replacement("ab", 2))
## itertools, groupby: [("aaabbc",)]
from itertools import groupby
def f(text):
    return [(key, len(list(group))) for key, group in groupby(text)], [list(g) for _, g in groupby([1, 3, 2, 4], key=lambda x: x % 2)]
## itertools, the rest: [([1, 2, 3, 4],)]
from itertools import accumulate, chain, count, cycle, dropwhile, islice, pairwise, repeat, starmap, takewhile, tee, zip_longest, compress, filterfalse
import operator
def f(xs):
    a, b = tee(xs)
    return (list(accumulate(xs)), list(accumulate(xs, operator.mul)), list(chain([0], xs)), list(chain.from_iterable([[1], [2]])), list(islice(count(10, 5), 3)),
        list(islice(cycle("ab"), 5)), list(dropwhile(lambda x: x < 3, xs)), list(takewhile(lambda x: x < 3, xs)), list(pairwise(xs)), list(repeat(7, 2)),
        list(starmap(pow, [(2, 3)])), list(zip_longest(xs, [9], fillvalue=0)), next(a) + next(b), list(compress("abc", [1, 0, 1])), list(filterfalse(None, [0, 1])))
## operator: [([{"n": 2}, {"n": 1}],)]
from operator import itemgetter, attrgetter, methodcaller, add
def f(rows):
    return sorted(rows, key=itemgetter("n")), itemgetter(0, 2)("abc"), methodcaller("upper")("x"), add(1, 2), attrgetter("real")(3)
## re with a function: [("a1b22c333",)]
import re
def f(text):
    return re.sub(r"\d+", lambda m: str(int(m.group()) * 2), text)
## re with named groups: [("2024-05-17 and 1999-12-31",)]
import re
def f(text):
    pattern = re.compile(r"(?P<year>\d{4})-(?P<month>\d\d)-(?P<day>\d\d)")
    return [m.groupdict() for m in pattern.finditer(text)], pattern.sub(r"\g<day>.\2.\1", text), pattern.search(text).span()
## re, looking around: [("price: $42, cost: $7",)]
import re
def f(text):
    return re.findall(r"(?<=\$)\d+", text), re.findall(r"\w+(?=:)", text), re.split(r"[,:]\s*", text), re.fullmatch(r"(\w)\1", "aa") is not None
## re with flags: [("One\ntwo\nTHREE",)]
import re
def f(text):
    return re.findall(r"^t\w+", text, re.M | re.I), bool(re.match(r"one.two", text, re.S | re.I)), re.subn("e", "3", text, flags=re.I), re.escape("a.b")
## rounding: [(2.675,), (0.5,), (1.5,), (2.5,), (-0.5,), (1234.5678,)]
def f(x):
    return round(x, 2), round(x), round(x, -2), f"{x:.1f}", "%.2f" % x, int(x), type(round(x)).__name__
## rounding whole numbers: [(1250,), (15,), (-25,)]
def f(x):
    return round(x, -1), round(x, -2), round(x), x // 10 * 10, -x // 10, -x % 10, divmod(-x, 7)
## floats: [(0.1, 0.2), (1e16, 1.0), (-0.0, 0.0)]
import math
def f(a, b):
    return a + b, a + b == 0.3, math.isclose(a + b, 0.3), math.fsum([a, b, -a]), math.copysign(1, a), repr(a / 3), (a * 3).is_integer(), (0.75).as_integer_ratio(), float.hex(a)
## math: [(12, 18)]
import math
def f(a, b):
    return math.gcd(a, b), math.lcm(a, b), math.isqrt(a * b), math.comb(b, 3), math.perm(5, 2), math.factorial(a), math.ceil(a / 5), math.floor(-a / 5), math.prod([a, b]), math.dist((0, 0), (3, 4)), math.log2(8), math.trunc(-2.5), math.hypot(3, 4)
## infinity: [([3, 1],), ([],)]
import math
def f(xs):
    return min(xs, default=math.inf), max(xs, default=-math.inf), math.isnan(math.nan), float("inf") > 10**100
## big whole numbers: [(100,), (2000,)]
def f(n):
    x = 2 ** n
    return x, x % (10**9 + 7), pow(3, n, 1000007), x.bit_length(), (x - 1).bit_count(), -x >> 3, len(hex(x))
## a factorial of many digits: [(1800,)]
import math
def f(n):
    return math.factorial(n), sum(map(int, str(math.factorial(200))))
## bits: [(37, 12)]
def f(a, b):
    return a & b, a | b, a ^ b, ~a, a << 3, a >> 2, bin(a), oct(a), hex(a), f"{a:08b}", int("ff", 16), int("-0b11", 0), a.to_bytes(2, "big"), int.from_bytes(b"\x01\x00", "little")
## modular inverse: [(3, 11)]
def f(a, m):
    return pow(a, -1, m), pow(a, m - 2, m)
## bytes: [([72, 105],)]
def f(xs):
    b = bytes(xs)
    a = bytearray(b)
    a.append(33)
    a[0] = 104
    return b, b[0], b[0:1], bytes(a), b.decode(), "é".encode(), b.hex(), bytes.fromhex("ff00"), list(b"ab"), bytes(3), b + b"!", b.find(b"i")
## memoryview and array: [([1, 2, 3],)]
from array import array
def f(xs):
    a = array("i", xs)
    a.extend([4])
    m = memoryview(b"abc")
    return a.tolist(), sum(a), m[1], bytes(m[1:]), a.typecode
## struct: [(258, 1.5)]
import struct
def f(n, x):
    packed = struct.pack("<Hd", n, x)
    return packed, struct.unpack("<Hd", packed), struct.calcsize("<Hd")
## string methods: [("  Hello, World  ",), ("ab1",), ("",)]
def f(s):
    t = s.strip()
    return (t.lower(), t.upper(), t.title(), t.swapcase(), t.capitalize(), t.center(20, "*"), t.ljust(8, "."), t.rjust(8), t.zfill(8), t.partition(","), t.rpartition("o"), t.isalpha(), t.isalnum(), t.isdigit(),
        t.casefold(), t.count("l"), t.find("o"), t.rfind("o"), t.startswith(("He", "ab")), t.removeprefix("He"), t.removesuffix("ld"), t.expandtabs(), s.lstrip(), s.rstrip(" "), t.splitlines(), t.replace("l", "L", 1))
## splitting: [("a,b,,c",), (" one  two ",)]
def f(s):
    return s.split(","), s.split(), s.split(",", 1), s.rsplit(",", 1), s.split(maxsplit=1), "x\ny\r\nz".splitlines(True), ",".join(s)
## translate: [("hello",)]
def f(s):
    return s.translate(str.maketrans("el", "ip")), s.translate(str.maketrans({"h": None, "o": "00"})), s.translate({ord("l"): "L"}), s[::-1], s[1:-1:2]
## formatting: [(3.14159, 42), (-1234567.891, 7)]
def f(x, n):
    return f"{x:,.2f}|{n:>6}|{n:<6}|{n:^6}|{n:06d}|{n:+d}|{n:x}|{n:#b}|{x:e}|{x:g}|{x:10.3f}|{n!r}|{n=}|{x:.0%}|{'a':*^5}|{{}}"
## formatting of other kinds: [("Ada", 36)]
def f(name, age):
    width = 10
    return "{} is {}".format(name, age), "{0}{0}{1:>5}".format(name, age), "{n:>{w}}".format(n=name, w=width), "%s is %d, %5.1f%%" % (name, age, 3.5), f"{name:>{width}}", f"{name!r:^9}", format(age, "b"), "{0[1]}".format([1, 2])
## unicode: [("naïve café",), ("ß",), ("日本語",)]
import unicodedata
def f(s):
    return len(s), s.upper(), [ord(c) for c in s], unicodedata.normalize("NFD", s), "".join(c for c in unicodedata.normalize("NFD", s) if unicodedata.category(c) != "Mn"), s.encode("utf-8"), s.isidentifier(), chr(128512)
## a Caesar cipher: [("Hello, World!", 3)]
def f(text, k):
    out = []
    for c in text:
        if c.isalpha():
            base = ord("A") if c.isupper() else ord("a")
            out.append(chr((ord(c) - base + k) % 26 + base))
        else:
            out.append(c)
    return "".join(out)
## the string module: [(1,)]
import string
def f(x):
    return string.ascii_lowercase[:3], string.digits, len(string.punctuation), string.capwords("a bc"), string.Template("$who likes $what").substitute(who="tim", what="kung pao")
## textwrap: [("the quick brown fox jumps over the lazy dog",)]
import textwrap
def f(text):
    return textwrap.wrap(text, 15), textwrap.dedent("  a\n    b"), textwrap.shorten(text, 20, placeholder="..."), textwrap.indent("a\nb", "> ")
## recursion: [(6,)]
def f(n):
    moves = []
    def hanoi(n, a, b, c):
        if n:
            hanoi(n - 1, a, c, b)
            moves.append((a, c))
            hanoi(n - 1, b, a, c)
    hanoi(n, "A", "B", "C")
    return len(moves), moves[:3]
## deep recursion: [(900,)]
def f(n):
    return 0 if n == 0 else 1 + f(n - 1)
## a raised recursion limit: [(3000,)]
import sys
sys.setrecursionlimit(10000)
def depth(n):
    return 0 if n == 0 else 1 + depth(n - 1)
def f(n):
    return depth(n)
## recursion that is caught: [(1,)]
def f(n):
    def down(k):
        return down(k + 1)
    try:
        down(0)
    except RecursionError:
        return "too deep"
## mutual recursion: [(7,), (10,)]
def is_even(n):
    return n == 0 or is_odd(n - 1)
def is_odd(n):
    return n != 0 and is_even(n - 1)
def f(n):
    return is_even(n), is_odd(n)
## backtracking: [(6,)]
def f(n):
    solutions = []
    def place(row, columns):
        if row == n:
            solutions.append(list(columns))
            return
        for c in range(n):
            if all(c != k and abs(c - k) != row - r for r, k in enumerate(columns)):
                columns.append(c)
                place(row + 1, columns)
                columns.pop()
    place(0, [])
    return solutions
## a context manager class: [(0,), (2,)]
class Tracked:
    def __init__(self, log):
        self.log = log
    def __enter__(self):
        self.log.append("in")
        return self
    def __exit__(self, kind, error, trace):
        self.log.append(kind.__name__ if kind else "out")
        return kind is ZeroDivisionError
def f(x):
    log = []
    with Tracked(log) as a, Tracked(log):
        log.append(10 // x)
    return log
## contextlib: [(1,)]
from contextlib import contextmanager, suppress, ExitStack, redirect_stdout, nullcontext
import io
@contextmanager
def tag(name, out):
    out.append(f"<{name}>")
    try:
        yield name.upper()
    finally:
        out.append(f"</{name}>")
def f(x):
    out = []
    with tag("b", out) as name, suppress(KeyError):
        out.append(name)
        {}["missing"]
    with ExitStack() as stack:
        stack.callback(out.append, "bye")
    buffer = io.StringIO()
    with redirect_stdout(buffer):
        print("hi", 1, sep="-", end="!")
    return out, buffer.getvalue()
## exceptions of one's own: [(-1,), (5,), ("x",)]
class TooSmall(ValueError):
    def __init__(self, value):
        super().__init__(f"{value} is too small")
        self.value = value
def check(x):
    if x < 0:
        raise TooSmall(x)
    return x
def f(x):
    try:
        return check(x)
    except TooSmall as error:
        return str(error), error.value, isinstance(error, ValueError), error.args
    except TypeError as error:
        return type(error).__name__
## try, else, finally: [(1,), (0,)]
def f(x):
    log = []
    for _ in range(2):
        try:
            log.append(1 / x)
        except (ZeroDivisionError, TypeError) as error:
            log.append(str(error))
            continue
        else:
            log.append("else")
        finally:
            log.append("finally")
    return log
## raise from: [("a",)]
def f(x):
    try:
        try:
            int(x)
        except ValueError as error:
            raise KeyError("wrapped") from error
    except KeyError as error:
        return type(error.__cause__).__name__, error.args[0], repr(error)
## finally decides: [(1,)]
def f(x):
    def g():
        try:
            return "try"
        finally:
            x.append("finally") if isinstance(x, list) else None
    def h():
        while True:
            try:
                break
            finally:
                return "h"
    return g(), h()
## assertions: [(1,), (-1,)]
def f(x):
    try:
        assert x > 0, f"{x} is not positive"
    except AssertionError as error:
        return str(error)
    return "fine"
## exception groups: [(1,)]
def f(x):
    seen = []
    try:
        raise ExceptionGroup("several", [ValueError("v"), TypeError("t")])
    except* ValueError as group:
        seen.append([str(e) for e in group.exceptions])
    except* TypeError:
        seen.append("type")
    return seen
## the walrus: [([1, 5, 2, 8],)]
def f(xs):
    if (n := len(xs)) > 3:
        total = n
    it, got = iter(xs), []
    while (x := next(it, None)) is not None:
        got.append(x)
    return total, got, [y for x in xs if (y := x * x) > 3], any((big := x) > 4 for x in xs), big
## match: [([1, 2],), ({"op": "add", "args": [1, 2]},), ("quit",), (7,), ((1, 2, 3),), (None,), ([0, "x", "y"],)]
def f(x):
    match x:
        case [a, b]:
            return "pair", a, b
        case {"op": str(op), "args": [*args]}:
            return op, args
        case "quit" | "exit":
            return "bye"
        case int(n) if n > 5:
            return "large", n
        case [0, *rest]:
            return rest
        case (a, *_):
            return "starts", a
        case _:
            return "other"
## match on classes: [(0, 0), (3, 0), (1, 2)]
from dataclasses import dataclass
@dataclass
class Point:
    x: int
    y: int
def f(x, y):
    match Point(x, y):
        case Point(0, 0):
            return "origin"
        case Point(x=a, y=0):
            return f"on x at {a}"
        case Point() as p:
            return f"at {p.x}, {p.y}"
## scopes of comprehensions: [([1, 2, 3],)]
def f(xs):
    x = "outer"
    squares = [x * x for x in xs]
    matrix = [[i * j for j in range(3)] for i in range(2)]
    return x, squares, matrix, {x: x + 1 for x in xs}, {x % 2 for x in xs}, [a for b in matrix for a in b if a], list(zip(*matrix))
## closures: [(3,)]
def f(n):
    def counter():
        count = 0
        def step(by=1):
            nonlocal count
            count += by
            return count
        return step
    c = counter()
    late = [lambda: i for i in range(n)]
    early = [lambda i=i: i for i in range(n)]
    return [c(), c(5), c()], [g() for g in late], [g() for g in early]
## globals: [(2,)]
total = 0
def add(x):
    global total
    total += x
def f(x):
    add(x)
    add(x)
    return total, "total" in globals(), sorted(locals())
## default arguments that last: [(1,), (2,)]
def keep(x, seen=[]):
    seen.append(x)
    return list(seen)
def f(x):
    return keep(x)
## all kinds of arguments: [(1,)]
def g(a, /, b, *args, c=3, **kwargs):
    return a, b, args, c, kwargs
def f(x):
    return g(1, 2), g(1, b=2), g(1, 2, 3, 4, c=5, d=6), g(*[1, 2, 3], **{"c": 4, "z": 5})
## unpacking: [([1, 2, 3, 4],)]
def f(xs):
    first, *middle, last = xs
    (a, b), c = [1, 2], 3
    x = y = 5
    a, b = b, a
    return first, middle, last, a, b, c, x + y, [*xs, *"ab"], {**{"k": 1}, "k": 2}, (*xs, 0)
## lambdas: [([(1, "b"), (1, "a"), (0, "c")],)]
def f(pairs):
    return sorted(pairs, key=lambda p: (p[0], p[1])), (lambda *a, **k: (a, k))(1, b=2), list(filter(lambda p: p[0], pairs)), (lambda: (yield))().__class__.__name__
## sorting: [(["banana", "Apple", "cherry", "fig"],)]
def f(words):
    ws = list(words)
    ws.sort(key=len, reverse=True)
    return sorted(words), sorted(words, key=str.lower), sorted(words, key=lambda w: (-len(w), w)), ws, sorted("hello"), sorted({3: 1, 1: 2}), list(reversed(words)), sorted([True, 0, 2.5, -1])
## stable sorting: [([("a", 2), ("b", 1), ("c", 2), ("d", 1)],)]
def f(rows):
    return sorted(rows, key=lambda r: r[1]), sorted(rows, key=lambda r: r[1], reverse=True)
## sets: [([1, 2, 3], [2, 3, 4])]
def f(a, b):
    s, t = set(a), frozenset(b)
    s.discard(99)
    u = s.copy()
    u.update([7], (8,))
    return s & t, s | t, s - t, s ^ t, s <= u, s.isdisjoint({9}), len(u), {frozenset([1]), frozenset([1])}, s.intersection(b, [3]), s == {3, 2, 1}
## dicts: [({"a": 1, "b": 2},)]
def f(d):
    e = dict(d)
    e.setdefault("c", []).append(3)
    e.update(z=9)
    gone = e.pop("a"), e.pop("q", None)
    return (e, gone, d | {"b": 5}, list(d.items()), dict(zip("ab", [1, 2])), dict.fromkeys("ab", 0), {v: k for k, v in d.items()}, d.get("x"), d.get("x", 1), max(d, key=d.get), list(reversed(d)), d.keys() & {"a"}, next(iter(d)), e.popitem())
## list methods: [([3, 1, 2],)]
def f(xs):
    ys = xs[:]
    ys.insert(1, 9)
    ys.extend((7, 7))
    ys.remove(7)
    removed = ys.pop(0)
    ys[1:3] = [0, 0, 0]
    del ys[-1]
    zs = ys.copy()
    zs.reverse()
    zs.clear()
    return ys, removed, ys.index(0), ys.count(0), zs, [0] * 3, [[]] * 2, xs < [3, 2], [1, 2] + [3], 2 in xs
## del: [({"a": 1, "b": 2},)]
def f(d):
    del d["a"]
    x = [1, 2, 3, 4]
    del x[::2]
    y = 1
    del y
    try:
        y
    except UnboundLocalError:
        return d, x, "gone"
## slices: [("abcdefg",), ([1, 2, 3, 4, 5, 6, 7],)]
def f(s):
    return s[2:5], s[-3:], s[::-1], s[5:1:-2], s[:100], s[::3], s[4:4]
## builtins: [([3, 0, 2],)]
def f(xs):
    return (any(xs), all(xs), sum(xs, 10), list(enumerate(xs, 1)), list(zip(xs, "abc")), list(map(max, xs, [1, 1, 1])), abs(-3), divmod(7, 2), pow(2, 5), isinstance(1, (int, str)), callable(len), max(xs, key=lambda x: -x), min("b", "a"), ord("a"), chr(98), hash(1) == hash(1.0), type(xs).__name__, repr("a'b"), ascii("é"), bool([]), complex(1, 2) * 2, slice(1, 2).indices(5), list(range(10, 0, -3)), len(range(0, 10, 3)), 5 in range(0, 10, 5), range(3)[-1], id(xs) == id(xs), vars is not None)
## zip strictly: [([1, 2], [3])]
def f(a, b):
    try:
        return list(zip(a, b, strict=True))
    except ValueError:
        return list(zip(a, b))
## eval and exec: [("2 + 3 * x", 4)]
def f(text, x):
    space = {}
    exec("def g(y):\n    return y + 1", space)
    return eval(text, {"x": x}), space["g"](x), eval(compile("x ** 2", "<s>", "eval"), {"x": x})
## ast.literal_eval: [("[1, {'a': (2, None)}]",)]
import ast
def f(text):
    return ast.literal_eval(text), ast.dump(ast.parse("a + 1", mode="eval").body.op)
## a calculator: [("3 + 4 * (2 - 1)",), ("10 / 4 - 1",)]
import re
def f(text):
    tokens = re.findall(r"\d+|[-+*/()]", text)
    def expression():
        value = term()
        while tokens and tokens[0] in "+-":
            value = value + term() if tokens.pop(0) == "+" else value - term()
        return value
    def term():
        value = factor()
        while tokens and tokens[0] in "*/":
            value = value * factor() if tokens.pop(0) == "*" else value / factor()
        return value
    def factor():
        token = tokens.pop(0)
        if token == "(":
            value = expression()
            tokens.pop(0)
            return value
        return int(token)
    return expression()
## fractions: [(1, 3)]
from fractions import Fraction
def f(a, b):
    x = Fraction(a, b) + Fraction("0.25")
    return str(x), x.numerator, x.denominator, float(x), Fraction(0.75).limit_denominator(10) == Fraction(3, 4), round(x, 1) == Fraction(3, 5), int(x * 12)
## decimal: [("1.10", "2.20")]
from decimal import Decimal, ROUND_HALF_UP, getcontext
def f(a, b):
    x = Decimal(a) + Decimal(b)
    return str(x), str(Decimal("2.675").quantize(Decimal("0.01"), rounding=ROUND_HALF_UP)), str(Decimal(1) / Decimal(7)), float(x), x == Decimal("3.3"), getcontext().prec
## statistics: [([1, 2, 2, 3, 10],)]
import statistics
def f(xs):
    return statistics.mean(xs), statistics.median(xs), statistics.mode(xs), round(statistics.stdev(xs), 9), statistics.multimode([1, 1, 2, 2]), statistics.pvariance([1, 2, 3, 4])
## complex numbers: [(3 + 4j,)]
import cmath
def f(z):
    return abs(z), z.conjugate(), z * z, z.real, cmath.sqrt(-1), round(cmath.phase(1j), 9), (-8) ** (1 / 3) == (-8 + 0j) ** (1 / 3)
## datetime: [("2024-02-28", 2)]
from datetime import date, datetime, timedelta, timezone
def f(text, days):
    d = date.fromisoformat(text) + timedelta(days=days)
    t = datetime.strptime(text + " 13:05", "%Y-%m-%d %H:%M")
    return d.isoformat(), d.weekday(), (d - date(2024, 1, 1)).days, t.strftime("%d/%m/%y %I %p"), str(timedelta(hours=30)), t.replace(tzinfo=timezone.utc).timestamp(), d > date(2024, 2, 1), d.isocalendar()[1], (t + timedelta(minutes=-6)).hour
## calendar: [(2024, 2)]
import calendar
def f(year, month):
    return calendar.isleap(year), calendar.monthrange(year, month), calendar.month_name[month], calendar.day_abbr[0]
## json: [({"b": [1, None, True], "a": "é"},)]
import json
def f(x):
    text = json.dumps(x, sort_keys=True)
    return text, json.loads(text) == x, json.dumps([1.0, "x"], indent=1), json.dumps(x, ensure_ascii=False, separators=(",", ":"))
## hashlib and base64: [("hello",)]
import base64, binascii, hashlib, zlib
def f(s):
    data = s.encode()
    return hashlib.sha256(data).hexdigest(), hashlib.md5(data).hexdigest(), base64.b64encode(data).decode(), base64.b64decode("aGk="), binascii.hexlify(data), zlib.crc32(data), zlib.decompress(zlib.compress(data))
## random with a seed: [(42,)]
import random
def f(seed):
    r = random.Random(seed)
    xs = list(range(5))
    r.shuffle(xs)
    return r.random(), r.randint(1, 6), xs, r.choice("abc"), r.sample(range(10), 3), r.gauss(0, 1)
## copy: [([[1], [2]],)]
import copy
def f(xs):
    shallow, deep = copy.copy(xs), copy.deepcopy(xs)
    xs[0].append(9)
    return shallow, deep
## io.StringIO and csv: [("a,b\n1,\"x, y\"\n",)]
import csv, io
def f(text):
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerow(["q", "r,s"])
    return list(csv.reader(io.StringIO(text))), list(csv.DictReader(io.StringIO(text))), out.getvalue(), io.BytesIO(b"ab").read(1)
## printing: [(3,)]
def f(n):
    print("working", n, flush=True)
    print(*range(n), sep=", ")
    return n
## typing: [([1, 2, 3],)]
from __future__ import annotations
from typing import Any, Callable, Dict, Generic, Iterable, List, Optional, Protocol, Tuple, TypeVar, Union, TypedDict, cast
T = TypeVar("T")
class Box(Generic[T]):
    def __init__(self, item: T) -> None:
        self.item = item
class Row(TypedDict):
    n: int
class HasLen(Protocol):
    def __len__(self) -> int: ...
def first(xs: Iterable[T], default: Optional[T] = None) -> Union[T, None]:
    return next(iter(xs), default)
def f(xs: List[int]) -> Tuple[int | None, Any, int, int]:
    return first(xs), first([]), Box[int](3).item, cast(int, Row(n=4)["n"])
## annotations that are evaluated: [(2,)]
from typing import List, Dict, Tuple, Optional
def g(x: int, y: Optional[List[Dict[str, Tuple[int, ...]]]] = None) -> "list[int] | None":
    z: float = 1.5
    w: int
    return [x]
def f(x: "int") -> list[int]:
    return g(x), g.__annotations__["x"].__name__
## async: [(3,)]
import asyncio
def f(n):
    async def work(i):
        return i * i
    async def gather():
        return [await work(i) for i in range(n)]
    coroutine = gather()
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
## asyncio, many at once: [(3,)]
import asyncio
async def work(i, log):
    await asyncio.sleep(0.01 * (3 - i))
    log.append(i)
    return i * i
async def main(n):
    log = []
    return await asyncio.gather(*(work(i, log) for i in range(n))), sorted(log)
def f(n):
    return asyncio.run(main(n)), asyncio.run(main(1))
## asyncio, a queue and a time limit: [([1, 2, 3],)]
import asyncio
async def main(xs):
    queue, got = asyncio.Queue(maxsize=1), []
    async def producer():
        for x in xs:
            await queue.put(x)
        await queue.put(None)
    task = asyncio.create_task(producer())
    async with asyncio.Lock():
        while (x := await queue.get()) is not None:
            got.append(x)
    await task
    try:
        await asyncio.wait_for(asyncio.Event().wait(), timeout=0.01)
    except asyncio.TimeoutError:
        got.append("late")
    return got
def f(xs):
    return asyncio.run(main(xs)), asyncio.new_event_loop().run_until_complete(asyncio.sleep(0, "slept"))
## async generators: [(3,)]
def f(n):
    async def count():
        for i in range(n):
            yield i
    async def collect():
        return [i async for i in count()]
    try:
        collect().send(None)
    except StopIteration as stop:
        return stop.value
## inspect and introspection: [(1,)]
import inspect
class A:
    """Doc."""
    x = 1
    def m(self, a, b=2): ...
def f(x):
    return str(inspect.signature(A.m)), A.__doc__, A.__name__, [n for n in dir(A) if not n.startswith("_")], A.m.__defaults__, vars(A())
## a class made by type: [(5,)]
def f(x):
    Dynamic = type("Dynamic", (object,), {"value": x, "double": lambda self: self.value * 2})
    return Dynamic().double(), Dynamic.__name__, type(Dynamic()) is Dynamic
## if __name__ == "__main__": [(2,)]
def f(x):
    return x * 2
def main():
    raise SystemExit("not to be run")
if __name__ == "__main__":
    main()
## while and else: [(7,), (9,)]
def f(n):
    k = 2
    while k * k <= n:
        if n % k == 0:
            break
        k += 1
    else:
        return "prime"
    for i in range(3):
        pass
    else:
        k += 0
    return "composite", k
## a sieve: [(50,)]
def f(n):
    sieve = [True] * (n + 1)
    sieve[0:2] = [False, False]
    for i in range(2, int(n ** 0.5) + 1):
        if sieve[i]:
            sieve[i * i :: i] = [False] * len(range(i * i, n + 1, i))
    return [i for i, prime in enumerate(sieve) if prime]
## a sieve as bytearray: [(60,)]
def f(n):
    sieve = bytearray([1]) * (n + 1)
    for i in range(2, int(n ** 0.5) + 1):
        if sieve[i]:
            sieve[i * i :: i] = bytes(len(range(i * i, n + 1, i)))
    return sum(sieve[2:])
## edit distance: [("kitten", "sitting")]
def f(a, b):
    previous = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        current = [i]
        for j, y in enumerate(b, 1):
            current.append(min(previous[j] + 1, current[-1] + 1, previous[j - 1] + (x != y)))
        previous = current
    return previous[-1]
## union-find: [(5, [(0, 1), (3, 4)])]
class DSU:
    def __init__(self, n):
        self.parent = [*range(n)]
    def find(self, x):
        while self.parent[x] != x:
            self.parent[x] = self.parent[self.parent[x]]
            x = self.parent[x]
        return x
    def union(self, a, b):
        self.parent[self.find(a)] = self.find(b)
def f(n, pairs):
    d = DSU(n)
    for a, b in pairs:
        d.union(a, b)
    return len({d.find(i) for i in range(n)})
## a trie: [(["tea", "ten", "inn"], "te")]
def f(words, prefix):
    root = {}
    for word in words:
        node = root
        for c in word:
            node = node.setdefault(c, {})
        node["$"] = True
    def collect(node, path):
        for key, child in sorted(node.items()):
            if key == "$":
                yield path
            else:
                yield from collect(child, path + key)
    node = root
    for c in prefix:
        node = node.get(c, {})
    return list(collect(node, prefix))
## matrices: [([[1, 2], [3, 4]],)]
class M:
    def __init__(self, rows):
        self.rows = rows
    def __matmul__(self, other):
        return M([[sum(a * b for a, b in zip(row, column)) for column in zip(*other.rows)] for row in self.rows])
    def __pow__(self, n):
        result = M([[int(i == j) for j in range(len(self.rows))] for i in range(len(self.rows))])
        for _ in range(n):
            result = result @ self
        return result
def f(rows):
    return (M(rows) ** 5).rows, [list(r)[::-1] for r in zip(*rows)]
## roman numerals: [(1994,), (49,)]
def f(n):
    out = ""
    for value, sign in zip((1000, 900, 500, 400, 100, 90, 50, 40, 10, 9, 5, 4, 1), "M CM D CD C XC L XL X IX V IV I".split()):
        count, n = divmod(n, value)
        out += sign * count
    return out
## star imports: [(16,)]
from math import *
from collections import *
def f(x):
    return sqrt(x), pi, Counter("aab")["a"], floor(2.5)
## import under another name: [(2,)]
import math as m, collections.abc
from functools import reduce as fold
def f(x):
    import string as s
    return m.sqrt(x * 8), isinstance([], collections.abc.Sequence), fold(max, [1, x]), s.digits[0]
## weak references and identity: [(1,)]
import weakref
class Thing: pass
def f(x):
    t = Thing()
    r = weakref.ref(t)
    return r() is t, t is not None, [] is not [], x == True
## uuid, secrets, time: [(1,)]
import time, uuid, secrets
def f(x):
    return uuid.UUID(int=5).hex, len(secrets.token_hex(4)), time.perf_counter() > 0, len(str(uuid.uuid5(uuid.NAMESPACE_DNS, "x")))
## sys: [(1,)]
import sys
def f(x):
    sys.stdout.write("text\n")
    return sys.maxsize, sys.byteorder, sys.version_info >= (3, 8), sys.getrecursionlimit() > 0, sys.float_info.max
## traceback of what was caught: [(0,)]
import traceback
def f(x):
    try:
        1 / x
    except ZeroDivisionError:
        return traceback.format_exc().splitlines()[-1]
## warnings and logging: [(1,)]
import logging, warnings
def f(x):
    warnings.warn("careful")
    logging.getLogger("x").debug("hidden")
    return x
## a program that returns subclasses: [(1,)]
from collections import OrderedDict, defaultdict, Counter, namedtuple
from enum import IntEnum
class Two(IntEnum):
    TWO = 2
def f(x):
    return OrderedDict(a=1), defaultdict(int, {1: 2}), Counter("a"), namedtuple("P", "x")(3), True, Two.TWO
'''


def _read(text: str) -> list[tuple[str, str, list[tuple]]]:
    programs = []
    for part in text.split("\n## ")[1:]:
        heading, _, source = part.partition("\n")
        name, _, inputs = heading.partition(": [")
        programs.append((name, source + "\n", ast.literal_eval("[" + inputs)))
    return programs


PROGRAMS = _read(TEXT)
