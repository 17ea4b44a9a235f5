"""Writes the tables of one row a month or hour whose columns have Parquet's less common types.

Made with pandas 3.1.1 and pyarrow 26.0.1: python types_fixture.py
"""
import decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

periods = pd.period_range("2023-11", periods=4, freq="M")
unsigned = pa.table({
    "ds": pa.array([20231101, 20231102, 20231103, 20231104], pa.uint32()),
    "y": pa.array([1, 2, 3, 2**64 - 1024], pa.uint64()),
    "u8": pa.array([200, 201, 202, 255], pa.uint8()),
    "u16": pa.array([60000, 60001, 60002, 65535], pa.uint16()),
    "u32": pa.array([3, 4, 5, 4294967040], pa.uint32()),
    "half": pa.array(np.array([0.5, -2.0, 65504.0, 6e-8], np.float16)),
    "cents": pa.array([decimal.Decimal("1.10"), None, decimal.Decimal("-0.30"), decimal.Decimal("4.00")],
                      pa.decimal128(7, 2)),
    "clock": pa.array([1, 2, 3, 4], pa.time64("us")),
})
pq.write_table(unsigned, "unsigned.parquet")
pd.DataFrame({"ds": periods, "y": [1.0, 2.0, 3.0, 4.0]}).to_parquet("periods.parquet")
weeks = pd.period_range("2023-11-01", periods=4, freq="W-SUN")
pd.DataFrame({"ds": weeks, "y": [1.0, 2.0, 3.0, 4.0]}).to_parquet("weeks.parquet")
months = pd.date_range("2023-08-01", periods=6, freq="MS", tz="America/New_York")
hours = pd.date_range("2024-03-30 20:00", periods=8, freq="h", tz="Europe/Berlin")
pd.DataFrame({"ds": months, "y": np.arange(6.0)}).to_parquet("zone_months.parquet")
pd.DataFrame({"ds": hours, "y": np.arange(8.0)}).to_parquet("zone_hours.parquet")
