"""What a paper claims, beside what was measured: arms, published values, tables, verdicts (docs/reproducing.md)."""
