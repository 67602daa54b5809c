import math

import numpy as np
import pytest

from tlazy import data, readers
from tlazy.data import Normalization, load_dataset
from tlazy.errors import UserError
from tlazy.readers import read_file

X_TRAIN = np.arange(2 * 6 * 5, dtype=np.float64).reshape(6, 2, 5) / 7
Y_TRAIN = np.array([1, 2, 1, 2, 1, 2])
UNIVARIATE = X_TRAIN[:, 0]


@pytest.fixture
def four_arrays(tmp_path):
    path = tmp_path / "set.npz"
    np.savez(path, x_train=X_TRAIN, y_train=Y_TRAIN, x_test=X_TRAIN[:4], y_test=Y_TRAIN[:4])
    return path


def write_rows(path, delimiter, x=UNIVARIATE, y=Y_TRAIN, header=None):
    rows = [] if header is None else [header]
    rows += [
        delimiter.join([str(label), *map(repr, series.tolist())])
        for label, series in zip(y, x, strict=True)
    ]
    path.write_text("\n".join(rows) + "\n")
    return path


def write_ts(path, x=X_TRAIN, y=Y_TRAIN):
    head = "@problemName p\n@timeStamps false\n@univariate false\n@classLabel true 1 2\n@data\n"
    lines = [
        ":".join(",".join(map(repr, channel.tolist())) for channel in series) + f":{label}"
        for series, label in zip(x, y, strict=True)
    ]
    path.write_text(head + "\n".join(lines) + "\n")
    return path


def write_arff(path, x=UNIVARIATE, y=Y_TRAIN):
    head = "@relation r\n" + "".join(f"@attribute a{i} numeric\n" for i in range(x.shape[1]))
    lines = [
        ",".join([*map(repr, series.tolist()), str(label)])
        for series, label in zip(x, y, strict=True)
    ]
    path.write_text(head + "@attribute class {1,2}\n@data\n" + "\n".join(lines) + "\n")
    return path


def test_four_arrays_come_back_as_float32_series_and_class_indices(four_arrays):
    loaded = load_dataset(str(four_arrays))
    assert loaded.classes == ("1", "2")
    assert (loaded.name, loaded.channels, loaded.length) == ("set", 2, 5)
    assert (loaded.x_train.dtype, loaded.y_train.dtype) == (np.float32, np.int64)
    np.testing.assert_array_equal(loaded.x_train, X_TRAIN.astype(np.float32))
    np.testing.assert_array_equal(loaded.y_test, [0, 1, 0, 1])


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
@pytest.mark.parametrize("header", [None, "label{}a{}b{}c{}d{}e", "label{}0{}1{}2{}3{}4"])
def test_rows_hold_a_label_and_then_the_series_with_or_without_a_header(tmp_path, suffix, header):
    delimiter = "," if suffix == ".csv" else "\t"
    header = header and header.replace("{}", delimiter)
    read = read_file(write_rows(tmp_path / f"set{suffix}", delimiter, header=header))
    np.testing.assert_array_equal(np.stack(read.values), UNIVARIATE[:, None])
    assert read.labels == ["1", "2", "1", "2", "1", "2"]


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_rows_of_just_the_expected_length_have_no_label(tmp_path, suffix):
    delimiter = "," if suffix == ".csv" else "\t"
    path = write_rows(tmp_path / f"set{suffix}", delimiter)
    read = read_file(path, unlabelled_length=6)
    assert read.labels is None
    assert read.values[0].shape == (1, 6)


def test_ts_and_arff_files_give_the_series_that_were_written(tmp_path):
    pytest.importorskip("sktime", reason="the readers are sktime's")
    ts = read_file(write_ts(tmp_path / "set.ts"))
    np.testing.assert_array_equal(np.stack(ts.values), X_TRAIN)
    arff = read_file(write_arff(tmp_path / "set.arff"))
    np.testing.assert_array_equal(np.stack(arff.values), UNIVARIATE[:, None])
    assert ts.labels == arff.labels == ["1", "2", "1", "2", "1", "2"]


@pytest.mark.parametrize(
    ("name", "train", "test", "shape", "classes"),
    [
        ("ItalyPowerDemand", 67, 1029, (1, 24), 2),
        ("GunPoint", 50, 150, (1, 150), 2),
        ("BasicMotions", 40, 40, (6, 100), 4),
    ],
)
def test_named_sets_have_their_published_sizes(name, train, test, shape, classes):
    pytest.importorskip("sktime", reason="the sets are in its wheel")
    loaded = load_dataset(name)
    assert (len(loaded.y_train), len(loaded.y_test)) == (train, test)
    assert loaded.x_train.shape[1:] == loaded.x_test.shape[1:] == shape
    assert len(loaded.classes) == classes


@pytest.mark.parametrize("name", ["JapaneseVowels", "PLAID"])
def test_sets_of_unequal_lengths_are_refused_with_two_of_the_lengths(name):
    pytest.importorskip("sktime", reason="the sets are in its wheel")
    with pytest.raises(UserError, match=r"unequal lengths .* series 0 has \d+ steps, series \d+"):
        load_dataset(name)


def test_either_half_of_a_train_test_pair_of_files_brings_the_other(tmp_path):
    for suffix, delimiter in ((".csv", ","), (".tsv", "\t")):
        write_rows(tmp_path / f"set_TRAIN{suffix}", delimiter)
        write_rows(tmp_path / f"set_TEST{suffix}", delimiter, UNIVARIATE[:3], Y_TRAIN[:3])
        for half in ("TRAIN", "TEST"):
            loaded = load_dataset(str(tmp_path / f"set_{half}{suffix}"))
            assert (loaded.name, len(loaded.x_train), len(loaded.x_test)) == ("set", 6, 3)


def test_a_lone_file_is_split_by_class_and_seed(tmp_path):
    pytest.importorskip("sktime", reason="scikit-learn comes with it")
    x = np.random.default_rng(0).normal(size=(40, 8))
    path = write_rows(tmp_path / "set.csv", ",", x, np.arange(40) % 4)
    first, again, other = (load_dataset(str(path), seed=seed) for seed in (3, 3, 4))
    assert np.bincount(first.y_train).tolist() == [7, 7, 7, 7]
    assert np.bincount(first.y_test).tolist() == [3, 3, 3, 3]
    assert first.sha256() == again.sha256() != other.sha256()
    together = np.concatenate([first.x_train, first.x_test])[:, 0]
    np.testing.assert_array_equal(np.sort(together, 0), np.sort(x.astype(np.float32), 0))


def test_normalization_is_by_channel_over_the_training_part():
    norm = Normalization.of(X_TRAIN.astype(np.float32))
    scaled = norm.apply(X_TRAIN.astype(np.float32))
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled.mean((0, 2)), 0, atol=1e-6)
    np.testing.assert_allclose(scaled.std((0, 2)), 1, rtol=1e-6)


def test_a_constant_channel_is_centred_and_not_divided_by_zero():
    x = np.full((3, 1, 4), 0.1, dtype=np.float32)
    np.testing.assert_allclose(Normalization.of(x).apply(x), 0, atol=1e-6)


def test_numeric_labels_are_ordered_by_value_and_read_alike_in_every_spelling(tmp_path):
    y = np.array(["10", "2.0", "2", "1.0000e+01", "10.0", "2"])
    np.savez(tmp_path / "set.npz", x_train=UNIVARIATE, y_train=y, x_test=UNIVARIATE, y_test=y)
    loaded = load_dataset(str(tmp_path / "set.npz"))
    assert loaded.classes == ("2", "10")
    assert loaded.y_train.tolist() == [1, 0, 0, 1, 1, 0]


def broken(**changes):
    arrays = {"x_train": X_TRAIN, "y_train": Y_TRAIN, "x_test": X_TRAIN, "y_test": Y_TRAIN}
    return {k: v for k, v in {**arrays, **changes}.items() if v is not None}


def with_value(value):
    x = X_TRAIN.copy()
    x[3, 1, 2] = value
    return x


BROKEN_ARRAYS = {
    "NaN in the training part": (
        broken(x_train=with_value(math.nan)),
        "training part: series 3, channel 1, step 2 is NaN",
    ),
    "NaN in the test part": (
        broken(x_test=with_value(math.nan)),
        "test part: series 3, channel 1, step 2 is NaN",
    ),
    "infinity": (broken(x_train=with_value(math.inf)), "step 2 is inf"),
    "too large for float32": (broken(x_train=with_value(1e300)), "step 2 is 1e\\+300"),
    "one class only": (broken(y_train=np.ones(6)), "one class only.*'1'"),
    "a label that training never saw": (
        broken(y_test=np.array([1, 2, 1, 3, 1, 2])),
        "test series 3 .* is labelled '3'",
    ),
    "another length in the test part": (
        broken(x_test=X_TRAIN[:, :, :4]),
        "2 channels of 5 steps, test series 2 channels of 4 steps",
    ),
    "a missing array": (broken(y_test=None), "missing arrays y_test"),
    "too few labels": (broken(y_train=Y_TRAIN[:5]), r"shape \(6,\)"),
    "complex values": (broken(x_train=X_TRAIN + 1j), "complex128"),
    "no series": (broken(x_train=X_TRAIN[:0], y_train=Y_TRAIN[:0]), "no series"),
    "no steps": (broken(x_train=X_TRAIN[:, :, :0]), "series 0 is empty"),
    "an empty label": (broken(y_train=np.array(["a", "", "b", "a", "b", "a"])), "series 1 .* no l"),
}


@pytest.mark.parametrize("case", BROKEN_ARRAYS)
def test_arrays_that_cannot_be_learned_from_are_refused_by_name(case, tmp_path):
    arrays, message = BROKEN_ARRAYS[case]
    np.savez(tmp_path / "set.npz", **arrays)
    with pytest.raises(UserError, match=message):
        load_dataset(str(tmp_path / "set.npz"))


BROKEN_FILES = {
    "set.csv": ("1,0.5,0.25\n2,0.5,abc\n", r"line 2, column 3: 'abc' is not a number"),
    "first.csv": ("1,0.5,abc\n2,0.5,0.5\n", r"line 1, column 3: 'abc' is not a number"),
    "uneven.tsv": ("1\t0.5\t0.25\n2\t0.5\n", "unequal lengths"),
    "nan.tsv": ("1\t0.5\t0.25\n2\t0.5\tNaN\n", "series 1, channel 0, step 1 is NaN"),
    "gap.csv": ("1,0.5,0.25\n2,0.5,\n", "series 1, channel 0, step 1 is NaN"),
    "empty.csv": ("", "no series"),
    "bad.npz": ("no zip", "malformed"),
    "bad.ts": ("hello\n", "malformed"),
    "bad.arff": ("hello\n", "malformed"),
    "set.txt": ("1 2 3", "unknown kind of file '.txt'"),
    "binary.csv": ("\udcff", "malformed: it is not UTF-8 text; save it as UTF-8"),
    "utf16.csv": ("1\0,\0002\0,\0003\0\n\0", "save it as UTF-8"),
    "semicolons.csv": ("1;2;3\n4;5;6\n", "every row has one column; is the separator a comma"),
    "commas.tsv": ("1,2,3\n4,5,6\n", "every row has one column; is the separator a tab"),
    "words.csv": ("1,2\n1," + "x" * 5000, r"line 2, column 2: 'x{30}…x{29}' is not a number"),
    "lost.ts": ("@data\n1,2:a\n", r"malformed: its content is not that of a \.ts file|malformed"),
}


@pytest.mark.parametrize("name", BROKEN_FILES)
def test_malformed_files_are_refused_with_the_place(name, tmp_path):
    if name.endswith((".ts", ".arff")):
        pytest.importorskip("sktime", reason="the readers are sktime's")
    content, message = BROKEN_FILES[name]
    path = tmp_path / name
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=message):
        data.check_values(read_file(path).values, name)


@pytest.mark.parametrize("failure", [TypeError("'NoneType' object"), IndexError("list index")])
def test_what_a_reader_stumbles_over_is_not_its_own_words(failure, tmp_path, monkeypatch):
    def stumble(path, unlabelled_length):
        raise failure

    monkeypatch.setitem(readers._READERS, ".ts", stumble)
    path = tmp_path / "set.ts"
    path.touch()
    with pytest.raises(UserError, match=r"malformed: its content is not that of a \.ts file$"):
        read_file(path)


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("1.0", "1"),
        ("1.", "1"),
        ("-0.0", "0"),
        ("-3.0000e+00", "-3"),
        ("2.5e1", "25"),
        ("1.50", "1.50"),
        ("007", "007"),
        ("1_1", "1_1"),
        ("+1", "+1"),
        ("--1", "--1"),
        ("١", "١"),
        ("inf", "inf"),
        ("1e999999999", "1e999999999"),
        ("9007199254740993", "9007199254740993"),
        ("9007199254740993.0", "9007199254740993"),
        ("9" * 5000, "9" * 5000),
    ],
)
def test_a_label_is_changed_only_where_it_is_the_same_whole_number(text, label):
    assert readers.canonical_label(text) == label


def test_labels_that_look_like_numbers_stay_apart_and_in_order(tmp_path):
    labels = ["10", "--1", "007", "7", "9007199254740993", "9007199254740992"]
    np.savez(
        tmp_path / "set.npz", x_train=UNIVARIATE, y_train=labels, x_test=UNIVARIATE, y_test=labels
    )
    assert load_dataset(str(tmp_path / "set.npz")).classes == tuple(sorted(labels))
    labels = ["10", "-2", "9", "9007199254740993", "9007199254740992", "0"]
    np.savez(
        tmp_path / "set.npz", x_train=UNIVARIATE, y_train=labels, x_test=UNIVARIATE, y_test=labels
    )
    assert load_dataset(str(tmp_path / "set.npz")).classes == tuple(sorted(labels, key=int))


@pytest.mark.parametrize("label", ["1" * 5000, "a\x1b[31m"])
def test_a_label_that_is_no_name_is_refused_with_its_length(label, tmp_path):
    path = write_rows(tmp_path / "set.csv", ",", y=["1", "2", label, "1", "2", "1"])
    with pytest.raises(UserError, match=rf"series 2 .* this one has {len(label)}") as raised:
        load_dataset(str(path))
    assert len(str(raised.value)) < 400


def test_series_are_counted_as_in_the_file_that_is_split(tmp_path):
    x = np.ones((40, 4))
    x[31, 2] = math.nan
    path = write_rows(tmp_path / "set.csv", ",", x, np.arange(40) % 2)
    with pytest.raises(UserError, match=r"set\.csv: series 31, channel 0, step 2 is NaN"):
        load_dataset(str(path))
    y = ["", *"12" * 2, "1"]
    path = write_rows(tmp_path / "other.csv", ",", y=y)
    with pytest.raises(UserError, match=r"other\.csv: series 0 .* has no label"):
        load_dataset(str(path))


@pytest.mark.parametrize("source", ["", " ", ".", "/"])
def test_a_folder_or_nothing_is_no_data(source):
    with pytest.raises(UserError, match=r"is a folder, not a file|--data is empty"):
        load_dataset(source)


def test_only_sets_that_can_be_learned_are_offered_and_others_say_why_not():
    pytest.importorskip("sktime", reason="the sets are in its wheel")
    with pytest.raises(UserError) as raised:
        load_dataset("Nonesuch")
    offered = str(raised.value).split(" are ")[1].split(";")[0].split(", ")
    assert {"ItalyPowerDemand", "GunPoint", "BasicMotions", "ArrowHead"} <= set(offered)
    assert not {"Tecator", "Covid3Month", "PLAID", "JapaneseVowels"} & set(offered)
    for name in ("Tecator", "Covid3Month"):
        with pytest.raises(UserError, match=f"{name} is a set for regression"):
            load_dataset(name)


def test_an_error_is_one_line_of_bounded_length_whatever_it_quotes():
    message = str(UserError("a\n" + "b" * 30000 + "\x1b[31m end"))
    assert len(message) < 1010
    assert message.isprintable()
    assert message.endswith("end")


def test_a_missing_file_and_an_unknown_name_are_told_apart(tmp_path):
    with pytest.raises(UserError, match=r"no such file: .*none\.npz"):
        load_dataset(str(tmp_path / "none.npz"))
    pytest.importorskip("sktime", reason="the sets are in its wheel")
    with pytest.raises(UserError, match=r"no data set and no file 'Nonesuch'.*GunPoint"):
        load_dataset("Nonesuch")


def test_a_class_of_one_series_cannot_be_split(tmp_path):
    pytest.importorskip("sktime", reason="scikit-learn comes with it")
    path = write_rows(tmp_path / "set.csv", ",", y=[1, 1, 1, 1, 1, 2])
    with pytest.raises(UserError, match="too few series"):
        load_dataset(str(path))


@pytest.mark.parametrize("parts", [("set",), ("set_TRAIN", "set_TEST")])
def test_rows_without_labels_are_told_from_too_few_series(parts, tmp_path):
    if len(parts) == 1:
        pytest.importorskip("sktime", reason="scikit-learn comes with it")
    for seed, part in enumerate(parts):
        rows = np.random.default_rng(seed).normal(size=(20, 8))
        np.savetxt(tmp_path / f"{part}.csv", rows, delimiter=",", fmt="%.4f")
    with pytest.raises(UserError, match="20 of 20 series have a label that no other has, such as"):
        load_dataset(str(tmp_path / f"{parts[0]}.csv"))


def test_npz_and_rows_are_read_without_sktime(tmp_path, four_arrays, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sktime", None)
    assert load_dataset(str(four_arrays)).length == 5
    write_rows(tmp_path / "set_TRAIN.csv", ",")
    write_rows(tmp_path / "set_TEST.csv", ",")
    assert load_dataset(str(tmp_path / "set_TRAIN.csv")).length == 5
    with pytest.raises(UserError, match=r"pip install 'tlazy\[data\]'"):
        load_dataset("ItalyPowerDemand")
