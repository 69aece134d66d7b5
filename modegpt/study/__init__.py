"""What is measured: experiments, results files, benchmarks, and the report that judges the papers' claims by them."""
