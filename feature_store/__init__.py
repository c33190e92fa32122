"""What a feature is, and where its values rest: Arrow, Polars and Delta, never torch or Ray."""
