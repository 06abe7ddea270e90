"""Rows of data sets as users have them: encodings, packings, tables in memory, folders, names of the hub; and what is
wrong with a source, in words."""

import bz2
import gzip
import json
import lzma
import os
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_mdp_envs.tasks.rows import plain, read_rows

ROWS = [
    {"question": "How many?\u2028\u2029\x85\x7f", "answer": "é #### 1", "tests": ["a", {"b": [1.5, None]}]},
    {"question": "b"},
]
LINES = [json.dumps(row, ensure_ascii=False).encode() for row in ROWS]
JSONL = b"\n".join(LINES)


def rows_of(source, split=None):
    return [row for _, row in read_rows(source, split)]


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("plain.jsonl", JSONL),
        ("mark.jsonl", b"\xef\xbb\xbf" + JSONL),
        ("crlf.jsonl", b"\r\n".join(LINES) + b"\r\n"),
        ("empty_lines.jsonl", b"\n\n" + b"\n \t\n".join(LINES) + b"\n\n"),
        ("no_suffix", JSONL),
        ("packed.jsonl.gz", gzip.compress(b"\xef\xbb\xbf" + JSONL)),
        ("packed.jsonl.bz2", bz2.compress(JSONL)),
        ("packed.jsonl.xz", lzma.compress(JSONL)),
        ("gzip_without_its_suffix.jsonl", gzip.compress(JSONL)),
        ("array.json", b"[" + b",\n".join(LINES) + b"]"),
        ("indented.json", b"\xef\xbb\xbf" + json.dumps(ROWS, indent=2, ensure_ascii=False).encode()),
        ("array.jsonl", json.dumps(ROWS).encode()),
    ],
)
def test_files(tmp_path, name, raw):
    path = tmp_path / name
    path.write_bytes(raw)
    assert rows_of(path) == rows_of(str(path)) == ROWS


@settings(max_examples=20)
@given(st.lists(st.dictionaries(st.text(), st.text() | st.floats(allow_nan=False) | st.integers()), min_size=1))
def test_what_json_writes_is_read(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_bytes("\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode("utf-8", "surrogatepass"))
    assert rows_of(path) == rows


def test_places_name_file_and_line(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_bytes(b"\n" + LINES[0] + b"\r\n\r\n" + LINES[1])
    assert [place for place, _ in read_rows(path)] == [f"{path}, line 2", f"{path}, line 4"]
    assert [place for place, _ in read_rows(ROWS, name="problems")] == ["problems[0]", "problems[1]"]


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (
            '{"question": "é"}'.encode("utf-16"),
            "is UTF-16 or no text at all, not UTF-8; if it is a text: iconv -f UTF-16",
        ),
        ('{"question": "é"}'.encode("utf-16-le"), "is UTF-16"),
        ('{"question": "é"}'.encode("utf-32"), "is UTF-32"),
        ('{"question": "é"}'.encode("utf-32-be"), "is UTF-32"),
        (b"\0" * 100, "or no text at all"),
        (
            b'{"a": 1}\n{"question": "caf\xe9"}',
            "line 2 holds the byte 0xE9, which is not UTF-8; if the file is Latin-1: iconv",
        ),
        (b"", "bad.jsonl has no rows; give at least one"),
        (b"\xef\xbb\xbf \r\n\n", "bad.jsonl has no rows; give at least one"),
        (b"[]", "bad.jsonl has no rows; give at least one"),
        (b"[1]", "entry 0 is 1; each row must be an object"),
        (b'{"a": 1}\n"text"', "line 2 is 'text'; each row must be an object"),
        (b'{"a": 1}\n{"a": 2,}', "line 2 is '{\"a\": 2,}', which is no JSON"),
        (b'{"a": 1} {"a": 2}', "line 1 is .*Extra data.*give one object a line"),
        (b'{\n  "a": 1\n}', "line 1 is '{', which is no JSON"),
        (b'{"a": 1, "a": 2}', "line 1 is .*the key 'a' stands in it twice"),
        (b'[{"a": 1},\n{"b": 2]', "bad.jsonl is .*line 2 column"),
        (b'{"a": "\\ud83d"}', "line 1 is .*surrogates not allowed"),
        (b'{"a": ' + b"9" * 5000 + b"}", "line 1 is .*integer string conversion"),
        (b"[" * 100_000, "is .*recursion"),
        (b"\x1f\x8b\x08garbage", "is packed and broken"),
        (gzip.compress(JSONL, mtime=0)[:-9], "is packed and broken"),
        (b"PAR1 and no more", "is a Parquet file and broken"),
        (b"PK\x03\x04", "is a zip archive, not JSON or Parquet; unpack it first"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"<!DOCTYPE html>", "line 1 is '<!DOCTYPE html>', which is no JSON"),
    ],
)
def test_bad_files(tmp_path, raw, words):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=words) as error:
        read_rows(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 500


def test_a_giant_line_is_read_and_a_broken_one_is_shown_in_part(tmp_path):
    path = tmp_path / "giant.jsonl"
    path.write_text(json.dumps({"a": "x" * 5_000_000}))
    assert len(rows_of(path)[0]["a"]) == 5_000_000
    path.write_text(json.dumps({"a": "x" * 5_000_000})[:-1])
    with pytest.raises(ValueError, match=r"line 1 is .*no JSON") as error:
        read_rows(path)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    ("source", "kind", "words"),
    [
        ("/nowhere", FileNotFoundError, "problems is '/nowhere', and there is no such file or folder"),
        ("gsm8k", FileNotFoundError, "problems is 'gsm8k'.*by its owner and name, such as 'openai/gsm8k:main'"),
        ("data/mine.jsonl", FileNotFoundError, "no such file"),
        ("", ValueError, "problems is ''; it must be a text"),
        ("a\0b", FileNotFoundError, "no such file"),
        ("a" * 5000, ValueError, "problems is .* which can be no file"),
        (None, ValueError, "problems is None; it must be a file"),
        (7, ValueError, "problems is 7"),
        (float("nan"), ValueError, "problems is nan"),
        (b"x.jsonl", ValueError, "problems is b'x.jsonl'"),
        ([], ValueError, "problems has no rows"),
        ({}, ValueError, "split is None; problems has none"),
        ({"question": "?", "answer": "1"}, ValueError, "problems is one mapping with 'question', 'answer'; give"),
        (["?"], ValueError, r"problems\[0\] is '\?'; each row must be an object"),
        ([{"a": 1}, None], ValueError, r"problems\[1\] is None"),
        ((row for row in ROWS), ValueError, "take some rows of a stream"),
        (list, ValueError, "problems is <class 'list'>"),
        (np.float64(3), ValueError, "problems is np.float64"),
        (np.array(["a"]), ValueError, r"problems\[0\] is"),
        (os.devnull, ValueError, "is neither a file nor a folder"),
    ],
)  # fmt: skip
def test_bad_sources(source, kind, words):
    with pytest.raises(kind, match=words) as error:
        read_rows(source, name="problems")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("split", ["train", "", 3, ["train"]])
def test_a_split_where_there_is_none(tmp_path, split):
    path = tmp_path / "x.jsonl"
    path.write_bytes(JSONL)
    for source in (path, ROWS):
        with pytest.raises(ValueError, match="split is"):
            read_rows(source, split)


def test_csv_says_what_to_give_instead(tmp_path):
    pandas = pytest.importorskip("pandas")
    path = tmp_path / "mine.csv"
    pandas.DataFrame([{"question": "a", "answer": 1.0}]).to_csv(path, index=False)
    with pytest.raises(ValueError, match=r"give the table itself, pandas\.read_csv"):
        read_rows(path)
    assert rows_of(pandas.read_csv(path)) == [{"question": "a", "answer": 1.0}]


# --- tables in memory, and what wrote them ---

NESTED = [
    {"prompt": [{"role": "user", "content": "1+1?"}], "n": 1, "x": 0.5, "flag": True, "deep": {"gold": ["2", "two"]}},
    {"prompt": [{"role": "user", "content": "?"}], "n": 2, "x": None, "flag": False, "deep": {"gold": []}},
]


def types(value):
    """The types of a value, at any depth."""
    if isinstance(value, dict):
        return {dict} | {kind for one in value.items() for part in one for kind in types(part)}
    return {list} | {kind for one in value for kind in types(one)} if isinstance(value, list) else {type(value)}


def test_pandas_parquet_and_data_sets_give_the_same_plain_rows(tmp_path):
    pandas, datasets = pytest.importorskip("pandas"), pytest.importorskip("datasets")
    frame, path = pandas.DataFrame(NESTED), tmp_path / "x.parquet"
    frame.to_parquet(path)
    read = pandas.read_parquet(path)
    assert isinstance(read.iloc[0]["prompt"], np.ndarray) and np.isnan(read.iloc[1]["x"])  # what makes the trouble
    table = datasets.Dataset.from_list(NESTED)
    table.save_to_disk(str(tmp_path / "saved"))
    sources = [
        NESTED,
        tuple(NESTED),
        frame,
        read,
        read.to_dict("records"),
        path,
        str(path),
        table,
        table.with_format("numpy"),
    ]
    sources += [table.to_pandas(), table.data.table, tmp_path / "saved"]
    for source in sources:
        assert rows_of(source) == NESTED, type(source)
        assert types(rows_of(source)) <= {dict, list, str, int, float, bool, type(None)}
    packed = tmp_path / "x.parquet.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert rows_of(packed) == NESTED


def test_splits(tmp_path):
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_list(NESTED)
    both = datasets.DatasetDict(train=table, test=table.select([0]))
    both.save_to_disk(str(tmp_path / "both"))
    for source in (both, tmp_path / "both", {"train": NESTED, "test": NESTED[:1]}):
        assert rows_of(source, "test") == NESTED[:1] and rows_of(source, "train") == NESTED
        with pytest.raises(ValueError, match=r"split is None; .* has 'train', 'test'"):
            read_rows(source)
        with pytest.raises(ValueError, match=r"split is 'dev'; .* has 'train', 'test'"):
            read_rows(source, "dev")
    assert rows_of(datasets.DatasetDict(train=table)) == NESTED
    with pytest.raises(ValueError, match="take some rows of a stream"):
        read_rows(table.to_iterable_dataset())


def test_a_folder_of_files_and_one_without(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "repository").mkdir()
    (tmp_path / "repository" / "train.jsonl").write_text('{"a": 1}\n{"a": 2}\n')
    assert rows_of(tmp_path / "repository") == [{"a": 1}, {"a": 2}]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="is a folder without rows that `datasets` can read") as error:
        read_rows(tmp_path / "empty")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["openai/gsm8k", "openai/gsm8k:main"])
def test_a_name_of_the_hub_without_a_network(name, tmp_path, monkeypatch):
    """Processes' time is no measure of waiting, so this reads the clock, with a wide margin: trying again took 23 s."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", "http://127.0.0.1:9")
    began = time.monotonic()
    with pytest.raises(
        ValueError, match=f"problems is '{name}', which is no file, and no data set .*the network"
    ) as error:
        read_rows(name, name="problems")
    assert time.monotonic() - began < 15 and "\n" not in str(error.value)


def test_a_name_of_the_hub_goes_through_datasets(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    asked = []

    def load(name, config, split):
        asked.append((name, config, split))
        return datasets.DatasetDict(train=datasets.Dataset.from_list(NESTED)) if split is None else NESTED[:1]

    (tmp_path / "openai___gsm8k").mkdir()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", load)
    assert rows_of("openai/gsm8k:main") == NESTED and rows_of("openai/gsm8k", "test[:1]") == NESTED[:1]
    assert asked == [("openai/gsm8k", "main", None), ("openai/gsm8k", None, "test[:1]")]


def test_plain():
    pandas = pytest.importorskip("pandas")
    messages = np.empty(1, dtype=object)
    messages[0] = {"role": "user", "content": np.str_("?"), "n": np.int64(3)}
    given = {"a": messages, "b": (np.float32(0.5), pandas.NA, pandas.NaT, float("nan")), "c": np.bool_(True), "d": len}
    wanted = {"a": [{"role": "user", "content": "?", "n": 3}], "b": (0.5, None, None, None), "c": True, "d": len}
    assert plain(given) == wanted
    assert type(plain(given)["c"]) is bool and type(plain(given)["a"][0]["content"]) is str
