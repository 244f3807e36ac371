"""Tests of clawbill. The folders mirror the package; beside them stand properties/, scenarios/ and benchmarks/."""
