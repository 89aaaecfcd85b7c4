"""Targets of videos: every frame is decoded and packed once (`prepare`), then read from packs (`dataset`)."""
