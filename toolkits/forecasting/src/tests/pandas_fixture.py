"""Writes pandas.parquet: two series of hours with a category for a name, a gap, a flag and a column of words.

Made with pandas 3.1.1 and pyarrow: python pandas_fixture.py
"""
import pandas as pd

stamps = pd.date_range("2024-02-28 22:00", periods=5, freq="h")
frames = [
    pd.DataFrame({"unique_id": name, "ds": stamps.as_unit("ns"), "y": values, "open": [True, False] * 2 + [True]})
    for name, values in [("north", [1.5, None, 2.25, 3.0, -4.0]), ("south", [10, 20, 30, 40, 50])]
]
table = pd.concat(frames, ignore_index=True)
table["weather"] = pd.Series(["sun", "rain"] * 5, dtype="category")
table["price"] = pd.array([1, 2, None, 4, 5] * 2, dtype="Int64")
table["unique_id"] = table["unique_id"].astype("category")
table.to_parquet("pandas.parquet", compression="zstd", row_group_size=4)
