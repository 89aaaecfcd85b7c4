"""Targets that are videos: every frame is decoded once and packed (`prepare`), and read from there
(`index`).
"""
