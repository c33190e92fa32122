"""SQL expressions over one row: what is let through, what is refused and how it is said."""

import polars as pl
import pytest

from feature_store.sql import InvalidExpression, parse

TYPES = {
    "a": pl.String(),
    "n": pl.Int64(),
    "m": pl.Int64(),
    "f": pl.Float64(),
    "b": pl.Boolean(),
    "d": pl.Date(),
    "t": pl.Datetime("us"),
    "l": pl.List(pl.Int64()),
    "texts": pl.List(pl.String()),
}

ROW_WISE = {
    "n / m": pl.Float64(),
    "n * 2 - m": pl.Int64(),
    "n // m + n % m": pl.Int64(),
    "-n": pl.Int64(),
    "LN(f) + LOG10(f) + LOG1P(f) + EXP(f)": pl.Float64(),
    "POW(f, 2) + SQRT(f) + CBRT(f) + SIN(f) + ATAN2(f, f)": pl.Float64(),
    "ROUND(f, 1) + FLOOR(f) + CEIL(f) + ABS(f) + SIGN(f)": pl.Float64(),
    "GREATEST(n, m) - LEAST(n, m)": pl.Int64(),
    "COALESCE(n, m, 0)": pl.Int64(),
    "NULLIF(n, 0)": pl.Int64(),
    "CASE WHEN n > 1 THEN 'many' WHEN n = 1 THEN 'one' ELSE 'none' END": pl.String(),
    "IF(b, a, 'x')": pl.String(),
    "LOWER(a) || '-' || UPPER(a)": pl.String(),
    "CONCAT_WS(':', a, n)": pl.String(),
    "SUBSTR(a, 1, 2)": pl.String(),
    "SPLIT_PART(a, '/', 1)": pl.String(),
    "REPLACE(TRIM(a), 'x', 'y')": pl.String(),
    "LENGTH(a)": pl.UInt32(),
    "REGEXP_LIKE(a, '^x')": pl.Boolean(),
    "a LIKE 'x%' OR a IN ('y', 'z')": pl.Boolean(),
    "NOT b AND n BETWEEN 1 AND 3": pl.Boolean(),
    "a IS NOT NULL": pl.Boolean(),
    "TRY_CAST(a AS DOUBLE)": pl.Float64(),
    "EXTRACT(hour FROM t)": pl.Int8(),
    "EXTRACT(epoch FROM t) - n": pl.Float64(),
    "STRFTIME(d, '%Y-%m')": pl.String(),
    "t + INTERVAL '1 day'": pl.Datetime("us"),
    "ARRAY_LENGTH(l) + ARRAY_SUM(l)": pl.Int64(),
    "ARRAY_CONTAINS(texts, a)": pl.Boolean(),
    "STRING_TO_ARRAY(a, ',')": pl.List(pl.String()),
    "n > 0 AND a <> 'SUM(n) now()'": pl.Boolean(),
}


@pytest.mark.parametrize("text", ROW_WISE)
def test_what_a_row_says_alone_is_let_through(text):
    assert parse(text).type_over(TYPES) == ROW_WISE[text]


def test_the_columns_are_named_once_each():
    assert set(parse("n * n + m").columns) == {"n", "m"}
    assert parse('"a column" || a').columns == ("a column", "a")


@pytest.mark.parametrize(
    "text",
    [
        "SUM(n)",
        "n + SUM(m)",
        "n / MAX(n)",
        "AVG(n)",
        "COUNT(*)",
        "COUNT(DISTINCT n)",
        "n - FIRST(n)",
        "STDDEV(n)",
        "MEDIAN(n)",
        "QUANTILE_CONT(f, 0.5)",
        "CORR(n, m)",
        "COVAR(n, m)",
        "ARRAY_AGG(n)",
        "STRING_AGG(a, ',')",
        "CASE WHEN n > AVG(n) THEN 1 ELSE 0 END",
        "COALESCE(n, SUM(n))",
        "TRY_CAST(SUM(n) AS DOUBLE)",
        "n IN (SELECT 1)",
        "EXISTS (SELECT 1)",
        "n + (SELECT 1)",
        "ROW_NUMBER() OVER (ORDER BY n)",
        "SUM(n) OVER (PARTITION BY a)",
        "SUM(n) OVER (ORDER BY n)",
        "RANK() OVER (ORDER BY n)",
        "DENSE_RANK() OVER (ORDER BY n)",
        "LAG(n) OVER (ORDER BY t)",
        "FIRST_VALUE(n) OVER (ORDER BY t)",
        "UNNEST(l)",
        "t < NOW()",
        "EXTRACT(epoch FROM CURRENT_TIMESTAMP) - n",
        "d < CURRENT_DATE",
    ],
)
def test_what_looks_beyond_the_row_is_refused_by_name_of_the_expression(text):
    with pytest.raises(InvalidExpression) as refused:
        parse(text)
    assert str(refused.value).startswith(repr(text))
    assert "from that row alone" in str(refused.value) or "other rows" in str(refused.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is no SQL expression"),
        ("n +", "is no SQL expression"),
        ("n; m", "is no SQL expression"),
        ("n m", "AS|is no SQL expression"),
        ("RANDOM()", "unsupported function 'random'"),
        ("1 + 1", "reads no column"),
        ("'n'", "reads no column"),
        ("*", "is no SQL expression"),
        ('"^n.*$"', "names several columns at once"),
        ("COLUMNS('n.*')", "names several columns at once"),
        ("n AS x", "uses AS"),
        ("t.n", "names a table or a struct"),
        ("CAST(a AS BIGINT)", "write TRY_CAST"),
        ("a::double", "write TRY_CAST"),
        ("DATE(a)", "declare the column as a date"),
        ("STRPTIME(a, '%Y')", "declare the column as a date"),
        ("REGEXP_LIKE(a, a)", "takes a pattern from a column"),
        ("STRPOS(a, a)", "takes a pattern from a column"),
        ("ARRAY_UNIQUE(l)", "is not among the operations known"),
    ],
)
def test_what_is_no_expression_over_columns_is_refused_with_what_to_do(text, said):
    with pytest.raises(InvalidExpression, match=said) as refused:
        parse(text)
    assert repr(text) in str(refused.value)


@pytest.mark.parametrize(
    ("text", "types"),
    [
        ("a + 1", "a: String"),
        ("NOT a", "a: String"),
        ("EXP(a)", "a: String"),
        ("LOWER(n)", "n: Int64"),
        ("n = '1'", "n: Int64"),
        ("d > '2024-01-01'", "d: Date"),
        ("STRFTIME(d, '%H')", "d: Date"),
        ("a ~ '('", "a: String"),
        ("TRY_CAST(a AS DATE)", "a: String"),
        ("n IN ('x')", "n: Int64"),
    ],
)
def test_a_type_that_does_not_fit_names_expression_and_types(text, types):
    with pytest.raises(InvalidExpression) as refused:
        parse(text).type_over(TYPES)
    assert str(refused.value).startswith(f"{text!r} cannot be computed from {types}: ")


def test_types_that_are_computed_otherwise_than_planned_are_refused():
    # With one thread Polars fails, with several it computes an Int64 where it planned a String.
    with pytest.raises(InvalidExpression, match=r"'n AND a' .* n: Int64, a: String"):
        parse("n AND a").type_over(TYPES)


def test_a_type_that_polars_plans_otherwise_than_it_computes_is_refused():
    with pytest.raises(InvalidExpression, match="String to Polars' planner and Float64"):
        parse("SQRT(a)").type_over(TYPES)
