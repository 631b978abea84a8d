"""Analysis of networks: parameter and multiply-add counts, and what the memories of a trained run stand for."""
