"""Table G, of graph distillation (Zhang and Peng, IJCAI 2018, tables 1 and 2): what its rows need and share,
teachers that learned a pretext task first, their stores, and students that are taught by them.
"""
