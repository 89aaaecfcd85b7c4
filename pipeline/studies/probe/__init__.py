"""Which source is worth it: what the stored rows of each know of a target's classes, before anything is
trained (`sskt probe`; docs/method.md, section 2.9).
"""
