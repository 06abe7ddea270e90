"""128 word problems of our own in GSM8K's format, the same each time: `python benchmarks/data/make_gsm8k_format.py`.

Thirty-two kinds of problem, four of each with other names and numbers. A solution has a line a step, with the
calculation between << and >>, and ends with "#### " and the answer. Every calculation is done here, exactly.
"""

import ast
import json
import operator
import random
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

FILE = Path(__file__).with_name("gsm8k_format.jsonl")
OF_EACH = 4

Problem = tuple[str, list[str]]
"""A question, and the lines of its solution; the last calculation is the answer."""

GIRLS = ("Amara", "Bettina", "Chloe", "Dagny", "Esther", "Farida", "Greta", "Hana", "Ines", "Joan", "Keiko", "Leila")
BOYS = ("Anton", "Boris", "Carlos", "Dmitri", "Emeka", "Felix", "Gustav", "Hassan", "Ivan", "Jonas", "Kofi", "Luis")

ARITHMETIC = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def exact(expression: str) -> Fraction:
    """The value of an expression in numbers, + - * / and brackets."""

    def value(node: ast.expr) -> Fraction:
        if isinstance(node, ast.BinOp):
            return ARITHMETIC[type(node.op)](value(node.left), value(node.right))
        assert isinstance(node, ast.Constant)
        return Fraction(str(node.value))

    return value(ast.parse(expression, mode="eval").body)


def decimal(number: Fraction) -> str:
    """3 as "3", 1/2 as "0.5"; AssertionError if four decimals do not hold it."""
    assert (number * 10000).denominator == 1, number
    return str(number.numerator) if number.denominator == 1 else f"{float(number):.4f}".rstrip("0")


def did(expression: str) -> str:
    """An expression with its value, as GSM8K writes it: "4*3 = <<4*3=12>>12"."""
    value = decimal(exact(expression))
    return f"{expression} = <<{expression.replace(' ', '')}={value}>>{value}"


def of(expression: str) -> str:
    """The value alone, for the next step."""
    return decimal(exact(expression))


def apples(r: random.Random) -> Problem:
    who, bags, each, eaten = r.choice(GIRLS), r.randint(3, 9), r.randint(5, 12), r.randint(3, 10)
    return (
        f"{who} buys {bags} bags of apples with {each} apples in each bag. She gives {eaten} apples to her neighbours. "
        f"How many apples does she have left?",
        [f"{who} buys {did(f'{bags}*{each}')} apples.", f"She has {did(f'{bags * each}-{eaten}')} apples left."],
    )


def notebooks(r: random.Random) -> Problem:
    who, n, price, paid = r.choice(BOYS), r.randint(3, 6), r.randint(2, 4), r.choice((40, 50))
    return (
        f"{who} wants {n} notebooks at ${price} each and a pen that costs ${price + 3}. He pays with ${paid}. How many "
        f"dollars does he get back?",
        [
            f"The notebooks cost {did(f'{n}*{price}')} dollars.",
            f"With the pen that makes {did(f'{n * price}+{price + 3}')} dollars.",
            f"{who} gets back {did(f'{paid}-{n * price + price + 3}')} dollars.",
        ],
    )


def sale(r: random.Random) -> Problem:
    price, percent = 20 * r.randint(2, 12), r.choice((10, 15, 20, 25, 35, 45))
    thing = r.choice(("jacket", "lamp", "pair of boots", "backpack", "kettle"))
    off = of(f"{price}*{percent}/100")
    return (
        f"A {thing} costs ${price}. In a sale the price is reduced by {percent}%. What is the price in the sale, in "
        f"dollars?",
        [
            f"The price goes down by {did(f'{price}*{percent}/100')} dollars.",
            f"In the sale the {thing} costs {did(f'{price}-{off}')} dollars.",
        ],
    )


def wages(r: random.Random) -> Problem:
    who, rate, hours, over = r.choice(GIRLS), r.choice((12, 14, 16, 18, 20)), r.randint(30, 40), r.randint(2, 8)
    more = of(f"{rate}*1.5")
    return (
        f"{who} earns ${rate} an hour for her first {hours} hours in a week and one and a half times as much for every "
        f"hour after that. Last week she worked {hours + over} hours. How many dollars did she earn?",
        [
            f"For the first {hours} hours {who} earned {did(f'{hours}*{rate}')} dollars.",
            f"She worked {did(f'{hours + over}-{hours}')} hours more.",
            f"Each of those paid {did(f'{rate}*1.5')} dollars, so all of them {did(f'{over}*{more}')} dollars.",
            f"Together she earned {did(f'{hours * rate}+{over * int(more)}')} dollars.",
        ],
    )


def train(r: random.Random) -> Problem:
    speed, hours, rest = r.choice((60, 70, 80, 90)), r.randint(2, 4), r.choice((45, 65, 85))
    return (
        f"A train travels for {hours} hours at {speed} kilometres an hour. Then it travels another {rest} kilometres. "
        f"How many kilometres does it travel in all?",
        [
            f"In {hours} hours the train travels {did(f'{hours}*{speed}')} kilometres.",
            f"In all it travels {did(f'{hours * speed}+{rest}')} kilometres.",
        ],
    )


def ages(r: random.Random) -> Problem:
    who, other, age, times, later = r.choice(BOYS), r.choice(GIRLS), r.randint(6, 12), r.randint(2, 4), r.randint(3, 9)
    return (
        f"{who} is {age} years old. His aunt {other} is {times} times as old. How old will {other} be in {later} "
        f"years?",
        [f"{other} is {did(f'{age}*{times}')} years old now.", f"She will be {did(f'{age * times}+{later}')} then."],
    )


def thirds(r: random.Random) -> Problem:
    who, part = r.choice(GIRLS), r.choice((3, 4, 5))
    total = part * r.randint(8, 20)
    left = total - total // part
    more = r.randint(2, left // 2)
    return (
        f"{who} has {total} beads. She uses 1/{part} of them for a bracelet and then {more} for a ring. How many beads "
        f"are left?",
        [
            f"The bracelet takes {did(f'{total}/{part}')} beads.",
            f"That leaves {did(f'{total}-{total // part}')} beads.",
            f"After the ring there are {did(f'{left}-{more}')} left.",
        ],
    )


def recipe(r: random.Random) -> Problem:
    people, guests = r.choice((2, 3, 4, 6)), r.randint(7, 12)
    each = r.randint(3, 9) * 10
    grams = people * each
    return (
        f"A recipe for {people} people needs {grams} grams of flour. How many grams of flour are needed for {guests} "
        f"people?",
        [
            f"One person needs {did(f'{grams}/{people}')} grams.",
            f"{guests} people need {did(f'{guests}*{each}')} grams.",
        ],
    )


def garden(r: random.Random) -> Problem:
    length, width, price = r.randint(8, 20), r.randint(4, 7), r.randint(3, 9)
    return (
        f"A garden is {length} metres long and {width} metres wide. A fence around it costs ${price} a metre. How many "
        f"dollars does the fence cost?",
        [
            f"Length and width are together {did(f'{length}+{width}')} metres.",
            f"Around the garden there are {did(f'2*{length + width}')} metres.",
            f"The fence costs {did(f'{2 * (length + width)}*{price}')} dollars.",
        ],
    )


def tiles(r: random.Random) -> Problem:
    length, width, box = r.randint(4, 9), r.choice((4, 8)), r.choice((2, 4))
    return (
        f"A kitchen floor measures {length} by {width} metres. One box of tiles covers {box} square metres. How many "
        f"boxes are needed for the floor?",
        [
            f"The floor has {did(f'{length}*{width}')} square metres.",
            f"That takes {did(f'{length * width}/{box}')} boxes.",
        ],
    )


def books(r: random.Random) -> Problem:
    who, a, b, days = r.choice(BOYS), r.randint(12, 25), r.randint(26, 40), r.randint(3, 6)
    pages = a * days + b * r.randint(2, 5)
    rest = pages - a * days
    return (
        f"{who} reads a book of {pages} pages. For {days} days he reads {a} pages a day, and after that {b} pages a "
        f"day. For how many days does he read {b} pages?",
        [
            f"In the first {days} days {who} reads {did(f'{days}*{a}')} pages.",
            f"That leaves {did(f'{pages}-{days * a}')} pages.",
            f"They take {did(f'{rest}/{b}')} days.",
        ],
    )


def eggs(r: random.Random) -> Problem:
    hens, each, price = r.randint(6, 14), r.randint(4, 6), r.randint(3, 5)
    return (
        f"A farmer has {hens} dozen hens, and every hen lays {each} eggs a week. The eggs are sold at ${price} a "
        f"dozen. How many dollars does the farmer take in a week?",
        [
            f"There are {did(f'{hens}*12')} hens.",
            f"They lay {did(f'{hens * 12}*{each}')} eggs a week.",
            f"That is {did(f'{hens * 12 * each}/12')} dozen.",
            f"They bring {did(f'{hens * each}*{price}')} dollars.",
        ],
    )


def minutes(r: random.Random) -> Problem:
    who, hours, quarter, task = r.choice(GIRLS), r.randint(2, 4), r.choice((15, 30, 45)), r.choice((5, 15))
    return (
        f"{who} practises the piano for {hours} hours and {quarter} minutes. Each piece takes her {task} minutes. How "
        f"many pieces can she play in that time?",
        [
            f"{hours} hours are {did(f'{hours}*60')} minutes.",
            f"She practises for {did(f'{hours * 60}+{quarter}')} minutes.",
            f"She can play {did(f'{hours * 60 + quarter}/{task}')} pieces.",
        ],
    )


def average(r: random.Random) -> Problem:
    who, first, second = r.choice(BOYS), r.randint(60, 80), r.randint(70, 90)
    third = 3 * r.randint(81, 90) - first - second
    return (
        f"{who} scored {first}, {second} and {third} points in three games. How many points did he score in a game on "
        f"average?",
        [
            f"In all he scored {did(f'{first}+{second}+{third}')} points.",
            f"On average that is {did(f'{first + second + third}/3')} points a game.",
        ],
    )


def savings(r: random.Random) -> Problem:
    who, week, have = r.choice(GIRLS), r.choice((6, 8, 12, 15)), r.randint(10, 40)
    price = have + week * r.randint(5, 14)
    return (
        f"{who} has ${have} and saves ${week} every week. A bicycle computer costs ${price}. After how many weeks can "
        f"she buy it?",
        [
            f"{who} still needs {did(f'{price}-{have}')} dollars.",
            f"She has them after {did(f'{price - have}/{week}')} weeks.",
        ],
    )


def tickets(r: random.Random) -> Problem:
    adults, children, price, less = r.randint(20, 60), r.randint(30, 90), r.choice((9, 11, 12)), r.randint(3, 5)
    return (
        f"A theatre sells {adults} tickets to adults at ${price} each. It also sells {children} tickets to children, "
        f"and each of these is ${less} cheaper. How many dollars does the theatre take?",
        [
            f"The adults pay {did(f'{adults}*{price}')} dollars.",
            f"A child pays {did(f'{price}-{less}')} dollars.",
            f"The children pay {did(f'{children}*{price - less}')} dollars.",
            f"The theatre takes {did(f'{adults * price}+{children * (price - less)}')} dollars.",
        ],
    )


def tank(r: random.Random) -> Problem:
    fill, leak, n = r.randint(12, 20), r.randint(2, 6), r.randint(8, 30)
    return (
        f"A tap pours {fill} litres a minute into a tank, while {leak} litres a minute run out through a leak. The "
        f"tank is empty at first and holds {(fill - leak) * n} litres. After how many minutes is it full?",
        [
            f"Every minute the tank gains {did(f'{fill}-{leak}')} litres.",
            f"It is full after {did(f'{(fill - leak) * n}/{fill - leak}')} minutes.",
        ],
    )


def marbles(r: random.Random) -> Problem:
    a, b = r.sample(BOYS, 2)
    few, more = r.randint(8, 25), r.randint(4, 15)
    return (
        f"{a} has {few} marbles. {b} has {more} more than twice as many as {a}. How many marbles do they have "
        f"together?",
        [
            f"Twice as many as {a} are {did(f'2*{few}')} marbles.",
            f"{b} has {did(f'{2 * few}+{more}')} marbles.",
            f"Together they have {did(f'{few}+{2 * few + more}')} marbles.",
        ],
    )


def ratio(r: random.Random) -> Problem:
    red, blue, unit = r.randint(2, 4), r.randint(5, 7), r.randint(6, 15)
    return (
        f"In a jar there are red and blue sweets, {red} red ones for every {blue} blue ones. There are "
        f"{(red + blue) * unit} sweets. How many of them are blue?",
        [
            f"Of every {did(f'{red}+{blue}')} sweets {blue} are blue.",
            f"There are {did(f'{(red + blue) * unit}/{red + blue}')} such groups.",
            f"So {did(f'{unit}*{blue}')} sweets are blue.",
        ],
    )


def salary(r: random.Random) -> Problem:
    who, month, percent = r.choice(GIRLS), r.choice((2400, 2800, 3200, 3600)), r.choice((5, 10, 15))
    rise = of(f"{month}*{percent}/100")
    new = of(f"{month}+{rise}")
    return (
        f"{who} earns ${month:,} a month. From January on she will earn {percent}% more. How many dollars will she "
        f"earn in that year, in all twelve months?",
        [
            f"She will earn {did(f'{month}*{percent}/100')} dollars more a month.",
            f"That makes {did(f'{month}+{rise}')} dollars a month.",
            f"In the year she will earn {did(f'{new}*12')} dollars.",
        ],
    )


def petrol(r: random.Random) -> Problem:
    per, price, hundreds = r.choice((5, 6, 7, 8)), r.choice((1.5, 1.8, 2.2)), r.choice((3, 4, 5, 6))
    return (
        f"A car uses {per} litres of petrol for 100 kilometres. A litre costs ${price:.2f}. How many dollars does the "
        f"petrol for {hundreds * 100} kilometres cost?",
        [
            f"{hundreds * 100} kilometres are {did(f'{hundreds * 100}/100')} times 100 kilometres.",
            f"The car uses {did(f'{hundreds}*{per}')} litres.",
            f"They cost {did(f'{hundreds * per}*{price}')} dollars.",
        ],
    )


def cinema(r: random.Random) -> Problem:
    rows, seats, free = 2 * r.randint(5, 9), r.choice((12, 16, 20, 24)), 4 * r.randint(4, 15)
    people = rows * seats - free
    return (
        f"A cinema has {rows} rows of {seats} seats. This evening {free} seats stay empty. A quarter of the people "
        f"buy popcorn, three portions each. How many portions of popcorn are sold?",
        [
            f"The cinema has {did(f'{rows}*{seats}')} seats.",
            f"{did(f'{rows * seats}-{free}')} people are there.",
            f"{did(f'{people}/4')} people buy popcorn.",
            f"They buy {did(f'{people // 4}*3')} portions.",
        ],
    )


def stairs(r: random.Random) -> Problem:
    who, floors, steps, times = r.choice(BOYS), r.randint(3, 7), r.randint(14, 22), r.randint(2, 4)
    return (
        f"{who} lives {floors} floors above the street, and there are {steps} steps between two floors. He walks up "
        f"and down {times} times a day. How many steps is that in a week?",
        [
            f"One way has {did(f'{floors}*{steps}')} steps.",
            f"Up and down are {did(f'2*{floors * steps}')} steps.",
            f"In a day that is {did(f'{times}*{2 * floors * steps}')} steps.",
            f"In a week it is {did(f'7*{times * 2 * floors * steps}')} steps.",
        ],
    )


def ribbon(r: random.Random) -> Problem:
    metres, piece, n = r.randint(3, 8), r.choice((15, 20, 25, 30)), r.randint(4, 9)
    return (
        f"From a ribbon of {metres} metres {n} pieces of {piece} centimetres each are cut off. How many centimetres of "
        f"ribbon are left?",
        [
            f"The ribbon is {did(f'{metres}*100')} centimetres long.",
            f"The pieces take {did(f'{n}*{piece}')} centimetres.",
            f"There are {did(f'{metres * 100}-{n * piece}')} centimetres left.",
        ],
    )


def buses(r: random.Random) -> Problem:
    seats, full, rest = r.choice((30, 36, 42, 48)), r.randint(3, 8), r.randint(5, 25)
    return (
        f"{seats * full + rest} pupils go on a trip. A bus has {seats} seats. {full} buses are full, and one more "
        f"takes the rest. How many seats of the last bus stay empty?",
        [
            f"In the full buses there are {did(f'{full}*{seats}')} pupils.",
            f"The last bus takes {did(f'{seats * full + rest}-{full * seats}')} pupils.",
            f"{did(f'{seats}-{rest}')} of its seats stay empty.",
        ],
    )


def candles(r: random.Random) -> Problem:
    who, n, cost, price = r.choice(GIRLS), r.randint(20, 60), r.randint(2, 4), r.randint(6, 11)
    fee = r.randint(10, 30)
    return (
        f"{who} makes {n} candles. The material for a candle costs ${cost}, and she sells each for ${price}. Her place "
        f"at the market costs ${fee}. How many dollars of profit does she make?",
        [
            f"A candle brings {did(f'{price}-{cost}')} dollars.",
            f"All candles bring {did(f'{n}*{price - cost}')} dollars.",
            f"Without the fee that leaves {did(f'{n * (price - cost)}-{fee}')} dollars.",
        ],
    )


def pills(r: random.Random) -> Problem:
    a_day, n = r.randint(2, 4), r.randint(10, 20)
    strength = r.choice((50, 100, 250))
    return (
        f"A patient takes {a_day} tablets of {strength} milligrams a day for {n} days. How many grams of the medicine "
        f"does the patient take in all?",
        [
            f"In a day the patient takes {did(f'{a_day}*{strength}')} milligrams.",
            f"In {n} days that makes {did(f'{n}*{a_day * strength}')} milligrams.",
            f"These are {did(f'{n * a_day * strength}/1000')} grams.",
        ],
    )


def votes(r: random.Random) -> Problem:
    total, percent, spoilt = 100 * r.randint(3, 15), r.choice((30, 35, 40)), r.choice((5, 10))
    rest = 100 - percent - spoilt
    return (
        f"In a vote with {total:,} ballots {percent}% are for the first plan and {spoilt}% are not valid. All others "
        f"are for the second plan. By how many ballots does the second plan win?",
        [
            f"{did(f'100-{percent}-{spoilt}')}% are for the second plan.",
            f"It has {did(f'{rest}-{percent}')}% more than the first.",
            f"It wins by {did(f'{total}*{rest - percent}/100')} ballots.",
        ],
    )


def pool(r: random.Random) -> Problem:
    who, length, laps, days = r.choice(BOYS), r.choice((25, 50)), r.randint(12, 30), r.randint(3, 6)
    total = length * laps * days
    return (
        f"{who} swims {laps} lengths of a pool of {length} metres on each of {days} days a week. How many metres "
        f"does he swim in four weeks?",
        [
            f"In a day {who} swims {did(f'{laps}*{length}')} metres.",
            f"In a week he swims {did(f'{days}*{laps * length}')} metres.",
            f"In four weeks that makes {did(f'4*{total}')} metres.",
        ],
    )


def interest(r: random.Random) -> Problem:
    who, sum_, percent, years = r.choice(GIRLS), r.choice((500, 800, 1500, 2000)), r.randint(2, 6), r.randint(2, 5)
    a_year = of(f"{sum_}*{percent}/100")
    interest = of(f"{years}*{a_year}")
    return (
        f"{who} lends ${sum_:,} at {percent}% simple interest a year. How many dollars does she get back after {years} "
        f"years, interest included?",
        [
            f"The interest of a year is {did(f'{sum_}*{percent}/100')} dollars.",
            f"In {years} years it is {did(f'{years}*{a_year}')} dollars.",
            f"{who} gets back {did(f'{sum_}+{interest}')} dollars.",
        ],
    )


def temperature(r: random.Random) -> Problem:
    start, drop, hours, up = r.randint(19, 28), r.randint(2, 3), r.randint(4, 6), r.randint(5, 9)
    return (
        f"At noon it is {start} degrees. The temperature falls by {drop} degrees an hour for {hours} hours and then "
        f"rises by {up} degrees. How many degrees is it then?",
        [
            f"The temperature falls by {did(f'{hours}*{drop}')} degrees.",
            f"That leaves {did(f'{start}-{hours * drop}')} degrees.",
            f"Then it is {did(f'{start - hours * drop}+{up}')} degrees.",
        ],
    )


def coins(r: random.Random) -> Problem:
    who, quarters, dimes, nickels = r.choice(BOYS), 2 * r.randint(4, 12), 10 * r.randint(1, 4), 2 * r.randint(5, 15)
    cents = quarters * 25 + dimes * 10 + nickels * 5
    return (
        f"{who} empties his money box: {quarters} quarters, {dimes} dimes and {nickels} nickels. How many dollars are "
        f"that?",
        [
            f"The quarters are {did(f'{quarters}*25')} cents.",
            f"The dimes are {did(f'{dimes}*10')} cents and the nickels {did(f'{nickels}*5')} cents.",
            f"Together that is {did(f'{quarters * 25}+{dimes * 10}+{nickels * 5}')} cents.",
            f"These are {did(f'{cents}/100')} dollars.",
        ],
    )


KINDS: tuple[Callable[[random.Random], Problem], ...] = (
    apples, notebooks, sale, wages, train, ages, thirds, recipe, garden, tiles, books, eggs, minutes, average, savings,
    tickets, tank, marbles, ratio, salary, petrol, cinema, stairs, ribbon, buses, candles, pills, votes, pool, interest,
    temperature, coins,
)  # fmt: skip


def row(kind: Callable[[random.Random], Problem], seed: int) -> dict[str, str]:
    """One problem as a row of the file."""
    question, steps = kind(random.Random(f"{kind.__name__} {seed}"))
    answer = Fraction(steps[-1].rpartition("=")[2].partition(">>")[0])
    assert answer > 0, (kind, seed)
    written = f"{answer.numerator:,}" if answer.denominator == 1 else decimal(answer)
    return {"question": question, "answer": "\n".join([*steps, f"#### {written}"])}


def rows() -> list[dict[str, str]]:
    """All problems: every kind once, then every kind again. AssertionError if two have the same question."""
    made = [row(kind, seed) for seed in range(OF_EACH) for kind in KINDS]
    assert len({one["question"] for one in made}) == len(made)
    return made


if __name__ == "__main__":
    FILE.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in rows()), encoding="utf-8")
