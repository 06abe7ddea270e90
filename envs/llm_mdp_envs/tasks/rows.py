"""Rows of a data set, wherever they are: a file, a folder, a table in memory, a data set of the Hugging Face hub."""

import bz2
import gzip
import io
import json
import lzma
import math
import re
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llm_mdp_envs.arguments import check_text, shown
from llm_mdp_envs.text import require

UNPACKERS: dict[bytes, Callable[[bytes], bytes]] = {
    b"\x1f\x8b": gzip.decompress,
    b"BZh": bz2.decompress,
    b"\xfd7zXZ": lzma.decompress,
}
"""How a file that begins so is unpacked."""
FOREIGN = {
    b"PK\x03\x04": ("a zip archive", "unpack it first"),
    b"\x28\xb5\x2f\xfd": ("packed by zstandard", "unpack it first: unzstd FILE"),
    b"ARROW1": ("an Arrow file", "give the folder that `save_to_disk` wrote, or datasets.Dataset.from_file(FILE)"),
    b"SQLite format 3": ("a database", "write its rows as JSON, one object a line"),
    b"version https://git-lfs": ("a pointer to a file that git-lfs holds", "fetch the file itself: git lfs pull"),
}
"""What a file is that begins so, and what to do about it."""
TABLES = {".csv": "read_csv", ".tsv": "read_table", ".xlsx": "read_excel", ".xls": "read_excel"}
"""Kinds of files that do not say which values are numbers and which are lists, and pandas' reader of each."""
ENCODINGS = {b"\xff\xfe\x00\x00": "UTF-32", b"\x00\x00\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
"""Marks at the beginning of a text, longer ones first."""
HUB_NAME = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(?::(?P<config>[\w.-]+))?")
FILE_NAME = re.compile(r"\.(jsonl?|ndjson|parquet|csv|tsv|txt|gz|bz2|xz|zip|zst|arrow|py)$")
STREAMED = "; take some rows of a stream: list(stream.take(1000))"
SECONDS_FOR_THE_HUB = 10
"""How long the hub may take to say whether it has a data set."""


def read_rows(source: Any, split: str | None = None, *, name: str = "rows") -> list[tuple[str, dict[str, Any]]]:
    """The rows of a data set as plain Python values, each with its place in words, for messages.

    Numpy's and pandas' values become Python's: arrays are lists, NaN and NA are None.

    Args:
        source: a file, a folder, a name or a table:
            - JSONL (one object a line, UTF-8, with or without a byte-order mark), a JSON array of objects, or Parquet,
              plain or packed by gzip, bz2 or xz; what a file is, is read off its content;
            - a folder written by `save_to_disk`, or one with data files, as `datasets.load_dataset` reads it;
            - `owner/name` or `owner/name:config` of the Hugging Face hub, if there is no file of that name;
            - a `datasets.Dataset` or `DatasetDict`, a pandas or polars DataFrame, a `pyarrow.Table`, or a sequence of
              mappings.
        split: such as "train", where there are splits; None: the only one.
        name: of the argument that the source is, for messages.

    Returns:
        (place, row) each, such as ("mine.jsonl, line 3", {…}) or ("rows[2]", {…}).

    Raises:
        ImportError: a library is missing that reads this kind of source.
        FileNotFoundError: there is no such file.
        ValueError: naming file and line, or row, and the remedy.
    """
    check_text("split", split, optional=True)
    if isinstance(source, str | Path):
        place = str(check_text(name, str(source)))
        path = Path(place)
        if _exists(path, name) and not path.is_dir():
            _refuse_split(split, place)
            return _some(_rows_of_file(path), place)
        table = _from_folder(path, split) if path.is_dir() else _from_hub(place, split, name)
        split = split if isinstance(table, Mapping) else None  # else it was chosen there
        name = place
    else:
        table = source
    if isinstance(table, Mapping):
        table, split = _one_split(table, split, name), None
    _refuse_split(split, name)
    return _some([(f"{name}[{number}]", row) for number, row in enumerate(_rows_of_table(table, name))], name)


def plain(value: Any) -> Any:
    """A value as Python has it: numpy's scalars and arrays as numbers and lists, NaN and pandas' NA as None, at any
    depth; anything else as it is."""
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, float):
        return None if math.isnan(value) else value
    if isinstance(value, Mapping):
        return {plain(key): plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [plain(one) for one in value]
    if type(value) is tuple:
        return tuple(plain(one) for one in value)
    return None if type(value).__name__ in ("NAType", "NaTType") else value


# --- files ---


def _exists(path: Path, name: str) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError) as error:  # too long, or a NUL in it
        raise ValueError(f"{name} is {shown(str(path))}, which can be no file ({_reason(error)}).") from None


def _rows_of_file(path: Path) -> list[tuple[str, Any]]:
    if not path.is_file():
        raise ValueError(f"{path} is neither a file nor a folder; give a file that can be read more than once.")
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from None
    for beginning, unpack in UNPACKERS.items():
        if raw.startswith(beginning):
            try:
                raw = unpack(raw)
            except (OSError, EOFError, zlib.error, lzma.LZMAError, ValueError) as error:
                raise ValueError(f"{path} is packed and broken ({_reason(error)}); fetch it again.") from None
    for beginning, (what, remedy) in FOREIGN.items():
        if raw.startswith(beginning):
            raise ValueError(f"{path} is {what}, not JSON or Parquet; {remedy}.")
    if reader := TABLES.get(path.suffix.lower()):
        raise ValueError(
            f"{path} does not say which values are numbers and which are lists; give the table itself, "
            f"pandas.{reader}({str(path)!r}), or write it as JSONL."
        )
    return _rows_of_parquet(raw, path) if raw.startswith(b"PAR1") else _rows_of_json(_text(raw, path), path)


def _rows_of_parquet(raw: bytes, path: Path) -> list[tuple[str, Any]]:
    require("pyarrow", "math", f"{path}, a Parquet file,")
    from pyarrow import ArrowException
    from pyarrow.parquet import read_table

    try:
        rows = read_table(io.BytesIO(raw)).to_pylist()
    except (ArrowException, OSError) as error:
        raise ValueError(f"{path} is a Parquet file and broken ({_reason(error)}); fetch it again.") from None
    return [(f"{path}, row {number}", plain(row)) for number, row in enumerate(rows)]


def _text(raw: bytes, path: Path) -> str:
    encoding = next((name for mark, name in ENCODINGS.items() if raw.startswith(mark)), None)
    if encoding is None and b"\0" in raw[:1000]:
        encoding = "UTF-32" if b"\0\0\0" in raw[:1000] else "UTF-16"
    if encoding:
        raise ValueError(
            f"{path} is {encoding} or no text at all, not UTF-8; if it is a text: iconv -f {encoding} -t UTF-8 "
            f"{path} > NEW."
        )
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}, line {line} holds the byte 0x{raw[error.start]:02X}, which is not UTF-8; if the file is Latin-1: "
            f"iconv -f WINDOWS-1252 -t UTF-8 {path} > NEW."
        ) from None


def _rows_of_json(text: str, path: Path) -> list[tuple[str, Any]]:
    if text.lstrip()[:1] == "[":
        rows = _loads(text, str(path))
        return [(f"{path}, entry {number}", row) for number, row in enumerate(rows)]
    # Lines end with "\n" only: U+2028 and its like may stand in a JSON string.
    lines = ((f"{path}, line {number}", line) for number, line in enumerate(text.split("\n"), start=1))
    return [(place, _loads(line, place)) for place, line in lines if line.strip()]


def _loads(text: str, place: str) -> Any:
    try:
        value = json.loads(text, object_pairs_hook=_without_twins, parse_constant=_constant)
        if "\\ud" in text or "\\uD" in text:
            json.dumps(value, ensure_ascii=False).encode()  # half of a surrogate pair is no text
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{place} is {shown(text.strip()[:40])}, which is no JSON ({_reason(error)}); give one object a line, or "
            f"one array of objects."
        ) from None
    return value


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} stands in it twice")
    return row


def _constant(name: str) -> float | None:
    """What Python's `json` writes for numbers that JSON has not: NaN is a missing value."""
    return None if name == "NaN" else float(name)


# --- folders and the hub ---


def _from_folder(path: Path, split: str | None) -> Any:
    require("datasets", "math", f"{path}, a folder of rows,")
    from datasets import load_dataset, load_from_disk

    try:
        if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
            return load_from_disk(str(path))
        return load_dataset(str(path), split=split)
    except Exception as error:  # `datasets` raises many kinds
        raise ValueError(
            f"{path} is a folder without rows that `datasets` can read ({_reason(error)}); give a JSONL file, or what "
            f"`save_to_disk` wrote."
        ) from None


def _from_hub(source: str, split: str | None, name: str) -> Any:
    found = HUB_NAME.fullmatch(source)
    if found is None or FILE_NAME.search(source) or Path(source).parent.is_dir():
        raise FileNotFoundError(
            f"{name} is {source!r}, and there is no such file or folder; give a JSONL, JSON or Parquet file, what "
            f"`save_to_disk` wrote, or a data set of the hub by its owner and name, such as 'openai/gsm8k:main'."
        )
    require("datasets", "math", f"{source}, a data set of the hub,")
    from datasets import config, load_dataset
    from huggingface_hub import HfApi

    of_hub = found["name"]
    kept = (Path(config.HF_DATASETS_CACHE) / of_hub.replace("/", "___")).exists()
    try:
        if not kept:  # without a network `load_dataset` tries for half a minute
            HfApi(endpoint=config.HF_ENDPOINT).dataset_info(of_hub, timeout=SECONDS_FOR_THE_HUB)
        return load_dataset(of_hub, found["config"], split=split)
    except Exception as error:  # `datasets` and the hub raise many kinds
        raise ValueError(
            f"{name} is {source!r}, which is no file, and no data set of that name could be had from "
            f"{config.HF_ENDPOINT} ({type(error).__name__}: {_reason(error)}); look at the name (owner/name, or "
            f"owner/name:config), the split and the network, or give a file."
        ) from None


def _one_split(splits: Mapping[str, Any], split: str | None, name: str) -> Any:
    """One of the splits of a DatasetDict, or of a dict of tables."""
    known = ", ".join(map(shown, splits)) or "none"
    if any(isinstance(rows, str | int | float | None) for rows in splits.values()):
        raise ValueError(f"{name} is one mapping with {known}; give a list of rows.")
    if split is None and len(splits) == 1:
        return next(iter(splits.values()))
    if split is None or split not in splits:
        raise ValueError(f"split is {shown(split)}; {name} has {known}.")
    return splits[split]


def _refuse_split(split: str | None, name: str) -> None:
    if split is not None:
        raise ValueError(f"split is {shown(split)}, but {name} has no splits; leave it out.")


# --- tables ---


def _rows_of_table(table: Any, name: str) -> Iterable[Any]:
    if hasattr(table, "iloc") and getattr(table, "ndim", 0) == 2:  # pandas
        table = table.to_dict("records")
    for method in ("to_dicts", "to_pylist"):  # polars, pyarrow
        table = getattr(table, method)() if hasattr(table, method) else table
    if not hasattr(table, "__len__") or not hasattr(table, "__iter__") or _is_no_table(table):
        streamed = "" if hasattr(table, "__len__") or not hasattr(table, "__iter__") else STREAMED
        raise ValueError(
            f"{name} is {shown(table)}; it must be a file, a folder, a data set, a DataFrame or a list of mappings"
            f"{streamed}."
        )
    return table


def _is_no_table(value: Any) -> bool:
    return isinstance(value, str | bytes | set | frozenset | type) or getattr(value, "ndim", 1) == 0


def _some(rows: list[tuple[str, Any]], name: str) -> list[tuple[str, dict[str, Any]]]:
    """The rows, plain; ValueError if there are none, or one is no mapping."""
    if not rows:
        raise ValueError(f"{name} has no rows; give at least one.")
    for place, row in rows:
        if not isinstance(row, Mapping):
            raise ValueError(f"{place} is {shown(row)}; each row must be an object: names and their values.")
    return [(place, plain(row)) for place, row in rows]


def _reason(error: BaseException) -> str:
    """What an error says, without its final stop, on one line of at most 200 characters."""
    return " ".join(str(error).split())[:200].rstrip(" .") or type(error).__name__
