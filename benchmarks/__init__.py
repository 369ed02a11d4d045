"""Timings beside other libraries; `README.md` in this folder says how to run them."""
